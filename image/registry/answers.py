"""What a registry answers: its refusals, where a blob's body begins, how fast it sends."""

from __future__ import annotations

import time

import aiohttp
import msgspec

from image.documents import Malformed, decode
from image.errors import AuthenticationRequired, ImageError, ImageNotFound, RegistryUnavailable

_LEAST_PROGRESS = 64 << 10  # bytes within a progress timeout that tell a slow registry from one that drips


class Pace:
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


class _ErrorItem(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""


class _ErrorBody(msgspec.Struct, frozen=True):
    errors: tuple[_ErrorItem, ...] = ()


async def refusal(response: aiohttp.ClientResponse, own: bool, what: str) -> ImageError:
    """The error that an answer of another status means.

    The words of a host that the registry redirected to are not repeated: it may be one that only this node reaches, and
    errors are read by whoever may see a pod's events.
    """
    text = f"get {what}: " + ("the registry" if own else f"{response.url.host}, where the registry sends us,")
    text += f" answered {response.status}"
    if own and (said := await _said(response)):
        text += f": {said}"
    if response.status == 404:
        return ImageNotFound(text)
    if response.status in (401, 403):
        return AuthenticationRequired(text)
    return RegistryUnavailable(text)


async def _said(response: aiohttp.ClientResponse) -> str:
    try:
        body = decode(await response.content.read(64 << 10), _ErrorBody)
    except (Malformed, aiohttp.ClientError, TimeoutError):
        return ""
    return "; ".join(f"{item.code}: {item.message}" for item in body.errors)[:300]


def first_byte(response: aiohttp.ClientResponse, wanted: int) -> int:
    """Where in the blob the body begins, at most at `wanted`: a server may ignore the range."""
    if response.status != 206:
        return 0
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if not start.isdigit() or int(start) > wanted:
        raise aiohttp.ClientPayloadError(f"partial content does not begin at {wanted}")
    return int(start)
