"""The connections to registries. Imports aiohttp."""

from __future__ import annotations

import functools

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError, RawResponseMessage
from aiohttp.streams import StreamReader

_READ_BUFFER = 128 << 10  # bytes; a connection that nobody reads holds twice as much
_HEADERS = 10 << 20  # bytes of an answer's headers, the same as Go's limit
_HEADER_COUNT = 10_000
_CONNECT_SECONDS = 15.0


def open_session(silence: float, agent: str) -> aiohttp.ClientSession:
    """Open a session on the running loop. `silence` is how many seconds may pass without a byte."""
    return aiohttp.ClientSession(
        auto_decompress=False,
        connector=_Connector(),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": agent, "Accept-Encoding": "identity"},
        max_line_size=_HEADERS,
        max_field_size=_HEADERS,
        max_headers=_HEADER_COUNT,
        read_bufsize=_READ_BUFFER,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=silence),
    )


class _Handler(ResponseHandler):
    """A connection that bounds the headers of an answer together, not one by one."""

    _received = 0
    _in_headers = True

    def set_response_params(self, **parameters: object) -> None:
        """Reset the count for a new request."""
        self._received, self._in_headers = 0, True
        super().set_response_params(**parameters)  # type: ignore[arg-type]  # they are only passed on

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Stop counting: the headers are complete."""
        self._in_headers = False
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        """Count received bytes until the headers are complete."""
        self._received += len(data) if self._in_headers else 0
        if self._received > _HEADERS + _READ_BUFFER:
            self.set_exception(HttpProcessingError(message=f"headers of more than {_HEADERS} bytes"))
            if self.transport is not None:
                self.transport.close()
            return
        super().data_received(data)


class _Connector(aiohttp.TCPConnector):
    def __init__(self) -> None:
        super().__init__(limit=0, ttl_dns_cache=10)
        self._factory = functools.partial(_Handler, loop=self._loop)  # type: ignore[assignment]  # it is invariant
