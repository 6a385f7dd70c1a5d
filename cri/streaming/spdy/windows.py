"""Flow control (specification, section 2.6.8), which most peers do not implement.

moby/spdystream, and so nearly every peer, neither sends nor reads WINDOW_UPDATE, and sends as much as it likes. Windows
are enforced in both directions from when the peer shows that it implements them, by a WINDOW_UPDATE or an initial
window size; bytes sent before count. Until then only TCP limits each direction, as between two ends of
moby/spdystream.
"""

from __future__ import annotations

DEFAULT = 64 << 10
LARGEST = (1 << 31) - 1


class SendWindow:
    """The window for sending to the peer, on a stream or on the whole connection."""

    __slots__ = ("left",)

    def __init__(self, size: int) -> None:
        self.left = size  # below 0 if the peer shrank its windows, or announced them late

    def grow(self, by: int) -> bool:
        """Enlarge the window. Returns False if it exceeds the maximum."""
        self.left += by
        return self.left <= LARGEST


class ReceiveWindow:
    """The window for receiving from the peer. It is reopened in steps of half its size, not for every few bytes."""

    __slots__ = ("_consumed", "_size", "left")

    def __init__(self, size: int) -> None:
        self._size = size
        self._consumed = 0
        self.left = size

    def take(self, length: int) -> bool:
        """Subtract received bytes. Returns False if the peer sent more than allowed."""
        self.left -= length
        return self.left >= 0

    def give_back(self, length: int) -> int:
        """Add processed bytes. Returns how much to announce to the peer now."""
        self._consumed += length
        if self._consumed * 2 < self._size:
            return 0
        given, self._consumed = self._consumed, 0
        self.left += given
        return given
