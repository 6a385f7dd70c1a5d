"""Header blocks: names and values with their lengths, compressed with one zlib state for the whole connection.

Specification, section 2.6.10.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

from cri.streaming.errors import ProtocolViolation

_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status|200 OK|version HTTP/1.1 url public set-cookie "
    "keep-alive origin"
)
_TAIL = (
    b"100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 "
    b"Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden"
    b"404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug "
    b"Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,"
    b"application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset="
    b"utf-8charset=iso-8859-1,utf-,*,enq=0."
)
_U32 = struct.Struct("!I")


def _dictionary() -> bytes:
    words = [word for part in _WORDS.split("|") for word in ([part] if part == "200 OK" else part.split())]
    return b"".join(_U32.pack(len(word)) + word.encode() for word in words) + _TAIL


DICTIONARY = _dictionary()
"""The initial dictionary of both compressors. The specification gives its Adler-32, 0xe3c6a7c2."""


class Compressor:
    """Compresses the header blocks of one direction, in the order in which they are sent."""

    def __init__(self) -> None:
        # The least effort and memory: blocks have some dozen bytes, and there are many connections.
        self._deflate = zlib.compressobj(level=1, wbits=11, memLevel=1, zdict=DICTIONARY)

    def block(self, headers: Mapping[str, str]) -> bytes:
        parts = [_U32.pack(len(headers))]
        for name, value in headers.items():
            for text in (name.lower().encode("latin-1"), value.encode("latin-1")):
                parts += (_U32.pack(len(text)), text)
        return self._deflate.compress(b"".join(parts)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)


class Decompressor:
    """Decompresses the header blocks of the other direction, with a bound on the result."""

    def __init__(self, max_bytes: int, max_headers: int) -> None:
        self._inflate = zlib.decompressobj(wbits=15, zdict=DICTIONARY)
        self._max_bytes = max_bytes
        self._max_headers = max_headers

    def headers(self, block: memoryview) -> dict[str, str]:
        """Return the headers of a block. Raises ProtocolViolation, after which the state is unusable."""
        try:
            plain = self._inflate.decompress(block, self._max_bytes + 1)
        except zlib.error as error:
            raise ProtocolViolation(f"inflate headers: {error}") from error
        if len(plain) > self._max_bytes or self._inflate.unconsumed_tail:
            raise ProtocolViolation(f"read headers: more than {self._max_bytes} bytes")
        if self._inflate.eof:
            raise ProtocolViolation("inflate headers: the peer ended the compressed stream")
        return self._parse(plain)

    def _parse(self, plain: bytes) -> dict[str, str]:
        found: dict[str, str] = {}
        try:
            (count,) = _U32.unpack_from(plain)
            if count > self._max_headers:
                raise ProtocolViolation(f"read headers: {count} of them, more than {self._max_headers}")
            offset = _U32.size
            for _ in range(count):
                name, offset = _text(plain, offset)
                value, offset = _text(plain, offset)
                if not name or name in found or name != name.lower():
                    raise ProtocolViolation(f"read headers: {name[:64]!r} is empty, repeated or not in lower case")
                found[name] = value
        except struct.error as error:
            raise ProtocolViolation("read headers: the block is too short") from error
        if offset != len(plain):
            raise ProtocolViolation("read headers: the block is longer than its headers")
        return found


def _text(plain: bytes, offset: int) -> tuple[str, int]:
    (length,) = _U32.unpack_from(plain, offset)
    start = offset + _U32.size
    if start + length > len(plain):
        raise ProtocolViolation("read headers: the block is too short")
    return plain[start : start + length].decode("latin-1"), start + length
