"""A buffer for data to send, with room for a frame's header in front, so that nothing is copied.

New memory for each read would cost more than the read: above malloc's threshold each buffer is mapped, faulted in page
by page, and unmapped again.
"""

from __future__ import annotations

from typing import Final

_HEADROOM: Final = 16
PAGE_BYTES: Final = 256 << 10


class Page:
    """The data of one read. All connections share a page: each has sent or replaced it before the next one reads."""

    __slots__ = ("_view",)

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Use new memory, because the old is still being sent."""
        self._view = memoryview(bytearray(_HEADROOM + PAGE_BYTES))

    def space(self, length: int) -> memoryview:
        """Return the memory to read at most `length` bytes into."""
        return self._view[_HEADROOM : _HEADROOM + length]

    def framed(self, header: bytes, length: int) -> memoryview:
        """Return the data that was read, behind a header."""
        start = _HEADROOM - len(header)
        self._view[start:_HEADROOM] = header
        return self._view[start : _HEADROOM + length]
