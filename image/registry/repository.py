"""A client for one repository of a registry (OCI distribution-spec 1.1, pull only).

Fetches manifests and blobs, with authentication, redirects and retries.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

from yarl import URL

from image.errors import AuthenticationRequired, DigestMismatch, ImageError, RegistryUnavailable
from image.manifest import MANIFEST_LIMIT, MANIFEST_TYPES, Descriptor
from image.model import Credentials
from image.reference import digest_of, is_digest
from image.registry.answers import Pace, first_byte, refusal
from image.registry.auth import Challenge, basic, parse_challenges
from image.registry.later import aiohttp
from image.registry.registries_conf import Endpoint
from image.registry.tokens import TokenRequest, get_token
from image.registry.transport import (
    REDIRECTS,
    TRIES,
    Answer,
    Transport,
    back_off,
    bounded,
    is_transient,
    reason,
    redirected,
    retry_after,
)

_ACCEPT = {"Accept": ", ".join(MANIFEST_TYPES)}
_FOUND = (200, 206)
_RANGE_REFUSED = (400, 403, 405, 416, 501)
_CHALLENGES = 3  # to answer for one request: the registry's, and those of hosts that it redirects to


class Repository:
    """A repository at one endpoint, for one pull.

    `kept` finds the node's own credentials; it is called if the registry requires some and none were given.
    """

    def __init__(
        self,
        transport: Transport,
        endpoint: Endpoint,
        credentials: Credentials | None,
        kept: Callable[[], Awaitable[Credentials | None]] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.transport = transport
        self._credentials = credentials
        self._kept = kept
        self._authorization = ""
        if credentials is not None and credentials.registry_token:
            self._authorization = f"Bearer {credentials.registry_token}"
        self._as_guest: dict[URL, str] = {}  # for hosts that the registry redirects to, by origin
        self._authorizing = asyncio.Lock()

    async def digest(self, reference: str) -> str:
        """Return the digest of a tag or digest, if the registry reports it without the manifest; else "".

        Registries that count downloads do not count this.
        """
        what = f"manifest {reference} of {self.endpoint}"
        try:
            response, _ = await self._authorized("HEAD", f"manifests/{reference}", _ACCEPT, what)
        except (aiohttp.ClientError, TimeoutError, OSError, ImageError):
            return ""  # the manifest is requested next, and its error is reported
        async with Answer(response):
            found = response.headers.get("Docker-Content-Digest", "")
            if response.status != 200 or response.content_type not in MANIFEST_TYPES or not is_digest(found):
                return ""
            return found if ":" not in reference or found == reference else ""

    async def manifest(self, reference: str) -> tuple[bytes, str]:
        """Return the manifest of a tag or digest, and its Content-Type. With a digest it is verified.

        Raises ImageNotFound, AuthenticationRequired, RegistryUnavailable, DigestMismatch.
        """
        what = f"manifest {reference} of {self.endpoint}"
        raw, content_type = await self._read(f"manifests/{reference}", _ACCEPT, MANIFEST_LIMIT, what)
        if ":" in reference and digest_of(raw) != reference:
            raise DigestMismatch(f"get {what}: content has digest {digest_of(raw)}")
        return raw, content_type

    async def blob(self, descriptor: Descriptor, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a blob from `offset` on, resuming after a broken connection. Does not verify the digest.

        Raises as `manifest` does; DigestMismatch if the size differs from the descriptor's.
        """
        what = f"blob {descriptor.digest} of {self.endpoint}"
        failures = 0
        ranges = True  # whether the registry supports them
        transport = self.transport
        pace = Pace(transport.progress_timeout, transport.least_speed, what)
        while offset < descriptor.size:
            headers = {"Range": f"bytes={offset}-"} if offset and ranges else {}
            try:
                async with await self._open(f"blobs/{descriptor.digest}", headers, what) as response:
                    if response.status not in _FOUND:
                        ranges = False
                        continue
                    skip = offset - first_byte(response, offset)
                    async for piece in response.content.iter_any():
                        pace.received(len(piece))
                        piece, skip = piece[skip:], max(0, skip - len(piece))
                        if offset + len(piece) > descriptor.size:
                            raise DigestMismatch(f"get {what}: more than the {descriptor.size} bytes it should have")
                        if piece:
                            failures = 0
                            offset += len(piece)
                            yield piece
                            pace.wait()
                if offset < descriptor.size:
                    ends = f"ends after {offset} of {descriptor.size} bytes"
                    if response.content_length is not None:  # without a length a broken connection looks like the end
                        raise DigestMismatch(f"get {what}: {ends}")
                    raise aiohttp.ClientPayloadError(ends)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failures += 1
                pace.received(0)
                await _wait_to_retry(failures, what, error)

    async def part(self, descriptor: Descriptor, start: int, end: int, *, of: int = 1) -> bytes | None:
        """Return the bytes of a blob from `start` to `end`; None if the registry sends something else.

        `of` is how many parts come at once, which share the speed. Raises as `blob` does.
        """
        what = f"blob {descriptor.digest} of {self.endpoint}"
        found = bytearray()
        failures = 0
        pace = Pace(self.transport.progress_timeout, self.transport.least_speed // of, what)
        while start + len(found) < end:
            at = start + len(found)
            headers = {"Range": f"bytes={at}-{end - 1}"}
            try:
                async with await self._open(f"blobs/{descriptor.digest}", headers, what) as response:
                    if response.status != 206 or first_byte(response, at) != at:
                        return None
                    async for piece in response.content.iter_any():
                        pace.received(len(piece))
                        found += piece
                        failures = 0
                        if start + len(found) > end:
                            return None
                        pace.wait()
                if start + len(found) < end:
                    raise aiohttp.ClientPayloadError(f"a range ends after {len(found)} of {end - start} bytes")
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failures += 1
                pace.received(0)
                await _wait_to_retry(failures, what, error)
        return bytes(found)

    # --- one request

    async def _read(self, path: str, headers: Mapping[str, str], limit: int, what: str) -> tuple[bytes, str]:
        for attempt in range(1, TRIES + 1):
            try:
                async with await self._open(path, headers, what) as response:
                    return await bounded(response, limit, what), response.headers.get("Content-Type", "")
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                await _wait_to_retry(attempt, what, error)
        raise AssertionError("unreachable")

    async def _open(self, path: str, headers: Mapping[str, str], what: str) -> Answer:
        """Send a GET until it succeeds or fails for good.

        The answer's status is 200 or 206, or one that refuses the range.
        """
        wanted = (*_FOUND, *_RANGE_REFUSED) if "Range" in headers else _FOUND
        for attempt in range(1, TRIES + 1):
            delay = back_off(attempt)
            try:
                response, own = await self._authorized("GET", path, headers, what)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure: ImageError = RegistryUnavailable(f"get {what}: {reason(error)}")
            else:
                if response.status in wanted:
                    return Answer(response)
                async with Answer(response):
                    failure = await refusal(response, own, what, with_login=self._sent_login)
                if not is_transient(response.status):
                    raise failure
                delay = retry_after(response, delay)
            if attempt < TRIES:
                await asyncio.sleep(delay)
        raise failure

    async def _authorized(
        self, method: str, path: str, headers: Mapping[str, str], what: str
    ) -> tuple[aiohttp.ClientResponse, bool]:
        """Send the request; if the registry asks for authentication, answer and send it again.

        Returns the answer, and whether it came from the registry itself rather than a host that it redirected to.
        """
        answered: set[URL] = set()
        while True:
            used = self._authorization, dict(self._as_guest)
            response, own = await self._send(method, path, headers)
            asker = response.url.origin()
            if response.status != 401 or asker in answered or len(answered) == _CHALLENGES:
                return response, own
            asked = response.headers.getall("WWW-Authenticate", ())
            offered = [challenge for header in asked for challenge in parse_challenges(header)]
            if not own and _bearer(offered) is None:
                return response, own
            async with Answer(response), self._authorizing:
                if own and self._authorization == used[0]:
                    self._authorization = await self._answer_challenge(offered, response.url, what)
                elif not own and self._as_guest.get(asker) == used[1].get(asker):
                    # Without the registry's credentials, whatever the name of the token service (CVE-2020-15157).
                    self._as_guest[asker] = await self._token(offered, None, response.url, what)
            answered.add(asker)

    async def _send(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[aiohttp.ClientResponse, bool]:
        schemes = self.transport.schemes(self.endpoint)
        for scheme in schemes:
            url = URL(f"{scheme}://{self.endpoint.host}/v2/{self.endpoint.repository}/{path}")
            try:
                response = await self._follow(method, url, headers)
            except aiohttp.ClientConnectorCertificateError:
                raise  # it speaks TLS: falling back to http would hide its identity
            except (aiohttp.ClientConnectionError, ssl.SSLError) as error:
                if scheme == schemes[-1]:
                    raise
                first = error
                continue
            if len(schemes) > 1 and scheme == "http":
                if response.status == 400:  # a TLS server's answer to plain http: the first error says more
                    response.close()
                    raise first
                self.transport.speaks_plain(self.endpoint)
            return response, response.url.origin() == url.origin()
        raise AssertionError("unreachable")

    async def _follow(self, method: str, url: URL, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """Send, following redirects. The registry's Authorization is sent to the registry only."""
        origin = url.origin()
        for _ in range(REDIRECTS):
            own = url.origin() == origin
            authorization = self._authorization if own else self._as_guest.get(url.origin(), "")
            if authorization:  # a URL's own user and ours cannot share the header
                url = url.with_user(None)
            sent = {**headers, "Authorization": authorization} if authorization else headers
            response = await self.transport.request(method, url, sent, insecure=self.endpoint.insecure_at(url))
            try:
                target = redirected(response, url)
            except aiohttp.ClientPayloadError:
                response.close()
                raise
            if target is None:
                return response
            response.close()
            url = target
        raise aiohttp.ClientPayloadError(f"more than {REDIRECTS} redirects")

    # --- authentication

    @property
    def _sent_login(self) -> bool:
        """Tell whether requests have credentials, or a token that was got with them."""
        return self._credentials is not None and bool(self._authorization)

    async def _answer_challenge(self, offered: list[Challenge], asked_at: URL, what: str) -> str:
        """Return the Authorization value for one of the registry's challenges. Raises AuthenticationRequired."""
        if self._credentials is None and self._kept is not None:
            self._credentials, self._kept = await self._kept(), None
            if self._credentials is not None and self._credentials.registry_token:
                return f"Bearer {self._credentials.registry_token}"
        if _bearer(offered) is not None:
            return await self._token(offered, self._credentials, asked_at, what)
        named = self._credentials is not None and self._credentials.username
        for challenge in offered:
            if challenge.scheme == "basic" and self._credentials is not None and named:
                value = basic(self._credentials)
                if value != self._authorization:
                    return value
                raise AuthenticationRequired(f"get {what}: the registry refused the credentials")
        kinds = ", ".join(challenge.scheme for challenge in offered) or "nothing it names"
        reason = f"the registry requires authentication ({kinds}), and no credentials for it are configured"
        raise AuthenticationRequired(f"get {what}: {reason}")

    async def _token(self, offered: list[Challenge], credentials: Credentials | None, asked_at: URL, what: str) -> str:
        bearer = _bearer(offered)
        assert bearer is not None
        scope = f"repository:{self.endpoint.repository}:pull"
        insecure = self.endpoint.insecure_at
        request = TokenRequest(bearer.parameters, scope, credentials, asked_at, insecure, what)
        return f"Bearer {await get_token(self.transport, request)}"


async def _wait_to_retry(failures: int, what: str, error: Exception) -> None:
    """Wait after the failures so far, the last of which is `error`. Raises RegistryUnavailable after too many."""
    if failures == TRIES:
        raise RegistryUnavailable(f"get {what}: {reason(error)}") from error
    await asyncio.sleep(back_off(failures))


def _bearer(offered: list[Challenge]) -> Challenge | None:
    return next((one for one in offered if one.scheme == "bearer" and one.parameters.get("realm")), None)
