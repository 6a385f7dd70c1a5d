"""A client of one repository of a registry (OCI distribution-spec 1.1, pull only): manifests and blobs, authentication,
redirects, retries."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType

import aiohttp
import msgspec
from yarl import URL

from image.auth import Challenge, basic, parse_challenges, parse_token
from image.errors import AuthenticationRequired, DigestMismatch, ImageError, ImageNotFound, RegistryUnavailable
from image.manifest import MANIFEST_LIMIT, MANIFEST_TYPES, Descriptor, digest_of
from image.model import Credentials
from image.proxy import from_environment
from image.registries_conf import Endpoint
from image.settings import ImageSettings
from image.tls import HostCertificates

_TRIES = 3
_BACK_OFF = 0.2  # seconds before the second try; four times that before the third
_RETRY_AFTER_LIMIT = 10.0  # seconds a registry may make us wait
_REDIRECTS = 10
_READ_BUFFER = 1 << 20  # bytes
_CONNECT_SECONDS = 15.0
_SILENCE_SECONDS = 60.0  # without a byte, before a request is tried again
_LEAST_PROGRESS = 64 << 10  # bytes within a progress timeout that tell a slow registry from one that drips
_REDIRECT = (301, 302, 303, 307, 308)
_TRANSIENT = (429, 500, 502, 503, 504)
_CLIENT_ID = "crisp"


class Transport:
    """The connections of all pulls, and which hosts turned out to speak plain http. Opened on the running loop."""

    def __init__(self, settings: ImageSettings) -> None:
        """Raises InvalidConfiguration when the environment names a proxy that cannot be used."""
        self._proxies = from_environment(os.environ)
        self._certificates = HostCertificates(settings.certs_dirs)
        self.progress_timeout = settings.progress_timeout
        silence = min(_SILENCE_SECONDS, settings.progress_timeout or _SILENCE_SECONDS)
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=10),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": _CLIENT_ID, "Accept-Encoding": "identity"},
            read_bufsize=_READ_BUFFER,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=silence),
        )
        self._plain: set[str] = set()

    async def close(self) -> None:
        await self._session.close()

    async def get(self, url: URL, headers: Mapping[str, str], insecure: bool) -> aiohttp.ClientResponse:
        tls, proxy = await self._tls(url, insecure), self._proxies.for_url(url)
        return await self._session.get(url, headers=headers, allow_redirects=False, ssl=tls, proxy=proxy)

    async def post(self, url: URL, form: Mapping[str, str], insecure: bool) -> aiohttp.ClientResponse:
        tls, proxy = await self._tls(url, insecure), self._proxies.for_url(url)
        return await self._session.post(url, data=form, allow_redirects=False, ssl=tls, proxy=proxy)

    async def small(self, url: URL, limit: int) -> bytes | None:
        """A document of at most `limit` bytes that anybody may read; None if there is none. Raises RegistryUnavailable,
        DigestMismatch when it is larger."""
        what = f"{url.with_query(None)}"
        for attempt in range(1, _TRIES + 1):
            try:
                async with _Answer(await self.get(url, {}, insecure=False)) as response:
                    if response.status == 200:
                        return await _bounded(response, limit, what)
                    if response.status in (403, 404, 410):
                        return None
                    failure = f"the server answered {response.status}"
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure = _reason(error)
            await asyncio.sleep(_BACK_OFF * 4 ** (attempt - 1))
        raise RegistryUnavailable(f"get {what}: {failure}")

    async def _tls(self, url: URL, insecure: bool) -> ssl.SSLContext | bool:
        if url.scheme != "https" or url.host is None or url.port is None:
            return True
        return await asyncio.to_thread(self._certificates.context, url.host, url.port, insecure)

    def schemes(self, endpoint: Endpoint) -> tuple[str, ...]:
        """The schemes to try at `endpoint`, in order."""
        if not endpoint.plain_http_allowed:
            return ("https",)
        return ("http",) if endpoint.host in self._plain else ("https", "http")

    def speaks_plain(self, endpoint: Endpoint) -> None:
        self._plain.add(endpoint.host)


class _Answer:
    """A response whose body is still to be read, closed on the way out."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def __aenter__(self) -> aiohttp.ClientResponse:
        return self.response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.response.close()


class _Pace:
    """How fast a registry sends, by the time that we wait for it and not for the disk."""

    def __init__(self, limit: float, what: str) -> None:
        self._limit = limit
        self._what = what
        self._waited = 0.0
        self._received = 0
        self._since = time.monotonic()

    def wait(self) -> None:
        self._since = time.monotonic()

    def received(self, size: int) -> None:
        """Raises RegistryUnavailable when too little came in too long a time."""
        now = time.monotonic()
        self._waited += now - self._since
        self._since = now
        self._received += size
        if self._limit and self._waited >= self._limit:
            if self._received < _LEAST_PROGRESS:
                raise RegistryUnavailable(f"get {self._what}: no progress within {self._limit:g} s")
            self._waited, self._received = 0.0, 0


class Repository:
    """One repository at one endpoint, for the time of one pull.

    `kept` finds the node's own credentials; it is asked when the registry wants some and none were given.
    """

    def __init__(
        self,
        transport: Transport,
        endpoint: Endpoint,
        credentials: Credentials | None,
        kept: Callable[[], Awaitable[Credentials | None]] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._transport = transport
        self._credentials = credentials
        self._kept = kept
        self._authorization = ""
        if credentials is not None and credentials.registry_token:
            self._authorization = f"Bearer {credentials.registry_token}"
        self._authorizing = asyncio.Lock()

    async def manifest(self, reference: str) -> tuple[bytes, str]:
        """The manifest of a tag or digest, and its Content-Type. What a digest names is verified.

        Raises ImageNotFound, AuthenticationRequired, RegistryUnavailable, DigestMismatch.
        """
        what = f"manifest {reference} of {self.endpoint}"
        headers = {"Accept": ", ".join(MANIFEST_TYPES)}
        raw, content_type = await self._read(f"manifests/{reference}", headers, MANIFEST_LIMIT, what)
        if ":" in reference and digest_of(raw) != reference:
            raise DigestMismatch(f"get {what}: content has digest {digest_of(raw)}")
        return raw, content_type

    async def blob(self, descriptor: Descriptor, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from `offset` on, taken up again where a connection broke. Digests are not verified here.

        Raises as `manifest` does; DigestMismatch when there is more or less than the descriptor says.
        """
        what = f"blob {descriptor.digest} of {self.endpoint}"
        failures = 0
        pace = _Pace(self._transport.progress_timeout, what)
        while offset < descriptor.size:
            try:
                headers = {"Range": f"bytes={offset}-"} if offset else {}
                async with await self._open(f"blobs/{descriptor.digest}", headers, what) as response:
                    skip = offset - _first_byte(response, offset)
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
                    raise DigestMismatch(f"get {what}: ends after {offset} of {descriptor.size} bytes")
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failures += 1
                pace.received(0)
                if failures == _TRIES:
                    raise RegistryUnavailable(f"get {what}: {_reason(error)}") from error
                await asyncio.sleep(_BACK_OFF * 4 ** (failures - 1))

    # --- one request

    async def _read(self, path: str, headers: Mapping[str, str], limit: int, what: str) -> tuple[bytes, str]:
        for attempt in range(1, _TRIES + 1):
            try:
                async with await self._open(path, headers, what) as response:
                    return await _bounded(response, limit, what), response.headers.get("Content-Type", "")
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if attempt == _TRIES:
                    raise RegistryUnavailable(f"get {what}: {_reason(error)}") from error
                await asyncio.sleep(_BACK_OFF * 4 ** (attempt - 1))
        raise AssertionError("unreachable")

    async def _open(self, path: str, headers: Mapping[str, str], what: str) -> _Answer:
        """Send one request until it succeeds or cannot; the answer's status is 200 or 206."""
        for attempt in range(1, _TRIES + 1):
            delay = _BACK_OFF * 4 ** (attempt - 1)
            try:
                response = await self._authorized(path, headers, what)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure: ImageError = RegistryUnavailable(f"get {what}: {_reason(error)}")
            else:
                if response.status in (200, 206):
                    return _Answer(response)
                async with _Answer(response):
                    failure = await _refusal(response, what)
                if response.status not in _TRANSIENT:
                    raise failure
                delay = _retry_after(response, delay)
            if attempt < _TRIES:
                await asyncio.sleep(delay)
        raise failure

    async def _authorized(self, path: str, headers: Mapping[str, str], what: str) -> aiohttp.ClientResponse:
        """Send the request; when the registry asks who we are, answer and send it again."""
        used = self._authorization
        response = await self._send(path, headers)
        if response.status != 401 or not self._is_own(response.url):
            return response
        async with _Answer(response):
            asked = response.headers.getall("WWW-Authenticate", ())
            offered = [challenge for header in asked for challenge in parse_challenges(header)]
            async with self._authorizing:
                if self._authorization == used:
                    self._authorization = await self._answer_challenge(offered, URL(response.url), what)
        return await self._send(path, headers)

    def _is_own(self, url: URL) -> bool:
        """Whether it was the registry that answered, and not a host that it redirected to: that one must not get at
        the registry's credentials by naming a token service (CVE-2020-15157)."""
        return url.origin() == URL(f"{url.scheme}://{self.endpoint.host}").origin()

    async def _send(self, path: str, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        schemes = self._transport.schemes(self.endpoint)
        for scheme in schemes:
            url = URL(f"{scheme}://{self.endpoint.host}/v2/{self.endpoint.repository}/{path}")
            try:
                response = await self._follow(url, headers)
            except aiohttp.ClientConnectorCertificateError:
                raise  # it does speak TLS: falling back would hide whom we are talking to
            except (aiohttp.ClientConnectionError, ssl.SSLError) as error:
                if scheme == schemes[-1]:
                    raise
                first = error
                continue
            if len(schemes) > 1 and scheme == "http":
                if response.status == 400:  # a TLS server's word for plain http: the first error says more
                    response.close()
                    raise first
                self._transport.speaks_plain(self.endpoint)
            return response
        raise AssertionError("unreachable")

    async def _follow(self, url: URL, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """GET with redirects. Authorization goes to the registry itself, never to where it sends us."""
        origin = url.origin()
        for _ in range(_REDIRECTS):
            authorization = self._authorization if url.origin() == origin else ""
            sent = {**headers, "Authorization": authorization} if authorization else headers
            response = await self._transport.get(url, sent, self.endpoint.insecure)
            location = response.headers.get("Location")
            if response.status not in _REDIRECT or location is None:
                return response
            response.close()
            target = _http_url(location, url)
            if target is None:
                raise aiohttp.ClientPayloadError("redirect to what is no http or https URL")
            url = target
        raise aiohttp.ClientPayloadError(f"more than {_REDIRECTS} redirects")

    # --- authentication

    async def _answer_challenge(self, offered: list[Challenge], asked_at: URL, what: str) -> str:
        """The Authorization value that one of the challenges asks for. Raises AuthenticationRequired."""
        if self._credentials is None and self._kept is not None:
            self._credentials, self._kept = await self._kept(), None
            if self._credentials is not None and self._credentials.registry_token:
                return f"Bearer {self._credentials.registry_token}"
        for challenge in offered:
            if challenge.scheme == "bearer" and "realm" in challenge.parameters:
                return f"Bearer {await self._token(challenge.parameters, asked_at, what)}"
        named = self._credentials is not None and self._credentials.username
        for challenge in offered:
            if challenge.scheme == "basic" and self._credentials is not None and named:
                value = basic(self._credentials)
                if value != self._authorization:
                    return value
                raise AuthenticationRequired(f"get {what}: the registry refused the credentials")
        kinds = ", ".join(challenge.scheme for challenge in offered) or "nothing it names"
        raise AuthenticationRequired(f"get {what}: the registry wants authentication ({kinds}); no credentials for it")

    async def _token(self, parameters: Mapping[str, str], asked_at: URL, what: str) -> str:
        """Get a bearer token from the token service that a challenge names."""
        realm = parameters["realm"]
        service = _http_url(realm)
        if service is None:
            raise AuthenticationRequired(f"get {what}: token service {realm!r} is no http or https URL")
        if service.scheme not in ("https", asked_at.scheme):
            raise AuthenticationRequired(f"get {what}: token service {realm} would see the credentials in clear")
        query = {"service": parameters.get("service", "")}
        query["scope"] = parameters.get("scope", f"repository:{self.endpoint.repository}:pull")
        insecure = self.endpoint.insecure
        credentials = self._credentials
        if credentials is not None and credentials.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": credentials.identity_token, "client_id": _CLIENT_ID}
            response = await self._transport.post(service, {**query, **form}, insecure)
        else:
            headers = {}
            if credentials is not None and credentials.username:
                headers["Authorization"] = basic(credentials)
            response = await self._transport.get(service.update_query(query), headers, insecure)
        async with _Answer(response):
            if response.status in _TRANSIENT:
                raise aiohttp.ClientConnectionError(f"token service {realm} answered {response.status}")
            if response.status != 200:
                raise AuthenticationRequired(f"get {what}: token service {realm} answered {response.status}")
            return parse_token(await _bounded(response, MANIFEST_LIMIT, f"token from {realm}"), realm)


class _ErrorItem(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""


class _ErrorBody(msgspec.Struct, frozen=True):
    errors: tuple[_ErrorItem, ...] = ()


async def _refusal(response: aiohttp.ClientResponse, what: str) -> ImageError:
    """The error that an answer other than 200 and 206 means."""
    try:
        body = msgspec.json.decode(await response.content.read(64 << 10), type=_ErrorBody)
        said = "; ".join(f"{item.code}: {item.message}" for item in body.errors)[:300]
    except (msgspec.DecodeError, UnicodeDecodeError, aiohttp.ClientError, TimeoutError):
        said = ""
    text = f"get {what}: the registry answered {response.status}" + (f": {said}" if said else "")
    if response.status == 404:
        return ImageNotFound(text)
    if response.status in (401, 403):
        return AuthenticationRequired(text)
    return RegistryUnavailable(text)


async def _bounded(response: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
    """The whole body. Raises DigestMismatch when it is longer than `limit` bytes."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > limit:
            raise DigestMismatch(f"get {what}: longer than {limit} bytes")
    return bytes(body)


def _http_url(text: str, base: URL | None = None) -> URL | None:
    """The URL that a server named, maybe relative to `base`; None for what is no http or https URL."""
    try:
        url = URL(text) if base is None else base.join(URL(text, encoded=True))
        return url if url.scheme in ("http", "https") and url.host and url.port else None
    except ValueError:  # some parts are looked at only when they are asked for
        return None


def _first_byte(response: aiohttp.ClientResponse, wanted: int) -> int:
    """Where in the blob the body begins, at most at `wanted`: a server may ignore the range."""
    if response.status != 206:
        return 0
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if not start.isdigit() or int(start) > wanted:
        raise aiohttp.ClientPayloadError(f"partial content does not begin at {wanted}")
    return int(start)


def _words(error: OSError) -> str:
    """The system's words for an error; asyncio puts words of its own around an address that refused."""
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)
    return os.strerror(error.errno)


def _retry_after(response: aiohttp.ClientResponse, default: float) -> float:
    """Seconds to wait before the next try (RFC 9110, 10.2.3: a number of them or a date)."""
    value = response.headers.get("Retry-After", "")
    if value.isdigit():
        return min(float(value), _RETRY_AFTER_LIMIT)
    try:
        until = parsedate_to_datetime(value)
        seconds = (until - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return default
    return min(max(seconds, default), _RETRY_AFTER_LIMIT)


def _reason(error: BaseException) -> str:
    """What went wrong on the wire, without URLs: they may be signed, and a proxy's may have its password in it."""
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return f"connect to proxy {error.host}:{error.port}: {_words(error.os_error)}"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"connect to {error.host}:{error.port}: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"connect to {error.host}:{error.port}: {_words(error.os_error)}"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy answered {error.status} {error.message}"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"malformed answer: {error.message}"
    if isinstance(error, aiohttp.InvalidURL):
        return "malformed URL"
    return str(error) or type(error).__name__
