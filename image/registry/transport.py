"""HTTP for registries: the connections of all pulls, limits of answers, and the texts of failures."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType

from yarl import URL

from image.errors import DigestMismatch, RegistryUnavailable
from image.registry.later import aiohttp
from image.registry.proxy import from_environment
from image.registry.registries_conf import Endpoint
from image.registry.tls import HostCertificates
from image.settings import ImageSettings

TRIES = 3
REDIRECTS = 10
REDIRECT = (301, 302, 303, 307, 308)
CLIENT_ID = "crisp"

_BACK_OFF = 0.2  # seconds before the second try; four times that before the third
_RETRY_AFTER_LIMIT = 10.0  # the most seconds to wait at a registry's request
_SILENCE_SECONDS = 60.0  # without a byte, until a request is retried
_TRANSIENT = (408, 425, 429)  # and 5xx except permanent ones
_FOR_EVER = (501, 505, 506, 510, 511)
# OpenSSL's reasons, of several versions, for an answer that is not TLS.
_NOT_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL")


class Transport:
    """The connections of all pulls, and the hosts that turned out to use plain http. Make it on the running loop."""

    def __init__(self, settings: ImageSettings) -> None:
        """Raises InvalidConfiguration if the environment names an invalid proxy."""
        self._proxies = from_environment(os.environ)
        self._certificates = HostCertificates(settings.certs_dirs)
        self.progress_timeout = settings.progress_timeout
        self.least_speed = settings.least_speed
        self.blobs_in_ranges = 0  # that come by several ranges at once
        self._silence = min(_SILENCE_SECONDS, settings.progress_timeout or _SILENCE_SECONDS)
        self._session: aiohttp.ClientSession | None = None
        self._plain: set[str] = set()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _opened(self) -> aiohttp.ClientSession:
        opening = await asyncio.to_thread(_opening) if self._session is None else None
        if self._session is None:
            assert opening is not None
            self._session = opening(self._silence, CLIENT_ID)
        return self._session

    async def request(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        *,
        insecure: bool = False,
        form: Mapping[str, str] | None = None,
    ) -> aiohttp.ClientResponse:
        """Send one request without following redirects. Raises aiohttp.ClientError, TimeoutError, OSError.

        `insecure` turns verification of the server off.
        """
        tls, proxy = await self._tls(url, insecure), self._proxies.for_url(url)
        session = await self._opened()
        try:
            return await session.request(
                method, url, headers=headers, data=form, allow_redirects=False, ssl=tls, proxy=proxy
            )
        except (aiohttp.ClientError, OSError):  # some of them are ValueErrors as well
            raise
        except ValueError as error:  # a server sent an unusable URL
            raise aiohttp.InvalidURL(url.host or "") from error

    async def small(self, url: URL, limit: int) -> bytes | None:
        """Fetch a public document of at most `limit` bytes; None if it does not exist.

        Raises RegistryUnavailable; DigestMismatch if it is larger.
        """
        what = f"{url.with_query(None)}"
        for attempt in range(1, TRIES + 1):
            try:
                async with Answer(await self.request("GET", url, {})) as response:
                    if response.status == 200:
                        return await bounded(response, limit, what)
                    if response.status in (403, 404, 410):
                        return None
                    failure = f"the server answered {response.status}"
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure = reason(error)
            await asyncio.sleep(back_off(attempt))
        raise RegistryUnavailable(f"get {what}: {failure}")

    async def _tls(self, url: URL, insecure: bool) -> ssl.SSLContext | bool:
        if url.scheme != "https" or url.host is None or url.port is None:
            return True
        return await asyncio.to_thread(self._certificates.context, url.host, url.port, insecure)

    def schemes(self, endpoint: Endpoint) -> tuple[str, ...]:
        """Return the schemes to try at `endpoint`, in order."""
        if not endpoint.plain_http_allowed:
            return ("https",)
        return ("http",) if endpoint.host in self._plain else ("https", "http")

    def speaks_plain(self, endpoint: Endpoint) -> None:
        self._plain.add(endpoint.host)


class Answer:
    """A response whose body is to be read; closed on exit."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def __aenter__(self) -> aiohttp.ClientResponse:
        return self.response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.response.close()


async def bounded(response: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
    """Return the whole body. Raises DigestMismatch if it exceeds `limit` bytes."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > limit:
            raise DigestMismatch(f"get {what}: longer than {limit} bytes")
    return bytes(body)


def http_url(text: str, base: URL | None = None) -> URL | None:
    """Return the URL that a server sent, maybe relative to `base`; None if it is not http or https."""
    try:
        url = URL(text) if base is None else base.join(URL(text, encoded=True))
        return url if url.scheme in ("http", "https") and url.host and url.port else None
    except ValueError:  # some parts are parsed only when read
        return None


def redirected(response: aiohttp.ClientResponse, url: URL) -> URL | None:
    """Return the URL that an answer redirects to; None if it does not. Raises aiohttp.ClientPayloadError."""
    location = response.headers.get("Location")
    if response.status not in REDIRECT or location is None:
        return None
    target = http_url(location, url)
    if target is None:
        raise aiohttp.ClientPayloadError("it redirects to a URL that is not http or https")
    return target


def is_transient(status: int) -> bool:
    """Return whether a retry may succeed after this status."""
    return status in _TRANSIENT or (status >= 500 and status not in _FOR_EVER)


def back_off(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row."""
    return _BACK_OFF * 4.0 ** (failures - 1)


def retry_after(response: aiohttp.ClientResponse, default: float) -> float:
    """Return the seconds to wait before the next try (RFC 9110, 10.2.3: a number or a date)."""
    value = response.headers.get("Retry-After", "")
    if value.isdigit():
        return min(float(value), _RETRY_AFTER_LIMIT)
    try:
        until = parsedate_to_datetime(value)
        seconds = (until - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return default
    return min(max(seconds, default), _RETRY_AFTER_LIMIT)


def _opening() -> Callable[[float, str], aiohttp.ClientSession]:
    """Import aiohttp, which takes a third of a second: not on the event loop, and not before anything is pulled."""
    from image.registry.session import open_session

    return open_session


def reason(error: BaseException) -> str:
    """Describe a network error without URLs: they may be signed, and a proxy's may contain its password."""
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


def _words(error: OSError) -> str:
    """Return the system's text for an error; asyncio puts text of its own around a refused address."""
    if isinstance(error, ssl.SSLError):  # its number is not the system's
        if isinstance(error, ssl.SSLCertVerificationError) or not error.reason:
            return f"TLS: {error}"
        told = f"TLS: {error.reason.replace('_', ' ').lower()}"
        return f"{told}: does it speak plain http?" if error.reason in _NOT_TLS else told
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)
    return os.strerror(error.errno)
