"""Interprets a registry's answers: errors, the start of a blob's body, the speed."""

from __future__ import annotations

import time

import msgspec

from image.documents import Malformed, decode
from image.errors import AuthenticationRequired, ImageError, ImageNotFound, RegistryUnavailable
from image.registry.later import aiohttp

_LEAST_PROGRESS = 64 << 10  # bytes within a progress timeout; with less the registry counts as stalled


class Pace:
    """Measures a registry's speed by the time spent waiting for it, not for the disk.

    In `limit` seconds at least 64 KiB must come, and `least` bytes a second.
    """

    def __init__(self, limit: float, least: int, what: str) -> None:
        self._limit = limit
        self._least = max(_LEAST_PROGRESS, int(least * limit))
        self._what = what
        self._waited = 0.0
        self._received = 0
        self._since = time.monotonic()

    def wait(self) -> None:
        self._since = time.monotonic()

    def received(self, size: int) -> None:
        """Count received bytes. Raises RegistryUnavailable if too few came in too long a time."""
        now = time.monotonic()
        self._waited += now - self._since
        self._since = now
        self._received += size
        if self._limit and self._waited >= self._limit:
            if self._received < self._least:
                came = f"{self._received} of at least {self._least} bytes came"
                raise RegistryUnavailable(f"get {self._what}: no progress within {self._limit:g} s: {came}")
            self._waited, self._received = 0.0, 0


class _ErrorItem(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""


class _ErrorBody(msgspec.Struct, frozen=True):
    errors: tuple[_ErrorItem, ...] = ()


async def refusal(response: aiohttp.ClientResponse, own: bool, what: str, *, with_login: bool = False) -> ImageError:
    """Return the error for an answer with another status. `with_login`: the request had credentials.

    The text of a host that the registry redirected to is left out: the host may be reachable from this node only, and
    everybody who sees a pod's events can read errors.
    """
    text = f"get {what}: " + ("the registry" if own else f"{response.url.host}, to which the registry redirects,")
    text += f" answered {response.status}"
    if own and (said := await _said(response)):
        text += f": {said}"
    if response.status == 404:
        return ImageNotFound(text)
    if response.status in (401, 403):
        return AuthenticationRequired(text + (", though credentials were sent" if own and with_login else ""))
    return RegistryUnavailable(text)


async def _said(response: aiohttp.ClientResponse) -> str:
    try:
        body = decode(await response.content.read(64 << 10), _ErrorBody)
    except (Malformed, aiohttp.ClientError, TimeoutError):
        return ""
    return "; ".join(f"{item.code}: {item.message}" for item in body.errors)[:300]


def first_byte(response: aiohttp.ClientResponse, wanted: int) -> int:
    """Return the offset in the blob where the body begins, at most `wanted`: a server may ignore the range."""
    if response.status != 206:
        return 0
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if not start.isdigit() or int(start) > wanted:
        raise aiohttp.ClientPayloadError(f"partial content does not begin at {wanted}")
    return int(start)
