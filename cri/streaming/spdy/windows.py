"""Flow control (specification, section 2.6.8), which one has to suspect of not being done at all.

moby/spdystream, and so nearly every peer, neither sends WINDOW_UPDATE nor reads it, and sends as much as it likes. A
peer is held to its window, and we keep to the one it gave, from the moment it shows that it knows of them: by a
WINDOW_UPDATE or an initial window size. What was sent before counts. Until then nothing bounds either direction here
but TCP, which is what bounds two ends of moby/spdystream, too.
"""

from __future__ import annotations

DEFAULT = 64 << 10
LARGEST = (1 << 31) - 1


class SendWindow:
    """What may be sent to the peer: on a stream, or on the whole connection."""

    __slots__ = ("left",)

    def __init__(self, size: int) -> None:
        self.left = size  # below 0 when the peer made its windows smaller, or told of them late

    def grow(self, by: int) -> bool:
        """False if the window would become larger than it can be."""
        self.left += by
        return self.left <= LARGEST


class ReceiveWindow:
    """What the peer may send; it is opened again in strides of half its size, not for every few bytes consumed."""

    __slots__ = ("_consumed", "_size", "left")

    def __init__(self, size: int) -> None:
        self._size = size
        self._consumed = 0
        self.left = size

    def take(self, length: int) -> bool:
        """Account for bytes that came; False if the peer sent more than it may."""
        self.left -= length
        return self.left >= 0

    def give_back(self, length: int) -> int:
        """Account for bytes that were consumed; how much to tell the peer of now."""
        self._consumed += length
        if self._consumed * 2 < self._size:
            return 0
        given, self._consumed = self._consumed, 0
        self.left += given
        return given
