"""Where what is sent is read into: with room for a frame's header before it, so that nothing is copied on its way.

Fresh memory for each read would cost more than the reading: above malloc's threshold every piece is mapped, faulted in
page by page, and unmapped again.
"""

from __future__ import annotations

from typing import Final

_HEADROOM: Final = 16
PAGE_BYTES: Final = 256 << 10


class Page:
    """One read's bytes. All connections share a page, as each has sent it, or taken another, before the next reads."""

    __slots__ = ("_view",)

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Leave the memory to who still sends from it, and use other."""
        self._view = memoryview(bytearray(_HEADROOM + PAGE_BYTES))

    def space(self, length: int) -> memoryview:
        """Where to read at most so many bytes into."""
        return self._view[_HEADROOM : _HEADROOM + length]

    def framed(self, header: bytes, length: int) -> memoryview:
        """The bytes that were read, behind a header."""
        start = _HEADROOM - len(header)
        self._view[start:_HEADROOM] = header
        return self._view[start : _HEADROOM + length]
