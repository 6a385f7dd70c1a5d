"""Keeps what a shim has read of containers' outputs and not written to their logs yet, for its successor.

It is a file in memory, which the keeper has too. A piece of output goes from the container's pipe into the file in one
system call, so at each instant it is in the one or in the other, and it leaves the file after it is in the log:

    what happens                     phase, if the shim is killed after it
    the piece is in the file         IDLE, and the file is longer than FLIGHT: write the piece's records
    its records are being written    WRITING: the log's length tells how many of their bytes are there; write the rest
    the end of a line is awaited     WRITTEN: the piece is logged; the beginning of a line is in the stream's new half
    the piece is removed             IDLE

The file has a head, then two places for each stream, of which one has the beginning of a line whose end has not come,
and from FLIGHT on the piece. A terminal cannot be read so: what a killed shim had just read of one is lost.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from typing import Final

from runtime.logs.writer import MAX_LINE

PIECE: Final = 64 << 10  # bytes read at once
STREAMS: Final = 126  # that have a place; more are read without the journal
_HEAD: Final = 4096
_PLACE: Final = 2 * MAX_LINE  # two halves
FLIGHT: Final = _HEAD + STREAMS * _PLACE

# phase, stream, bytes being written, inode and length of the log before, bytes of the timestamp
_STATE: Final = struct.Struct("<QIIQQI36s")
# half in use, bytes of the line's beginning
_STREAM: Final = struct.Struct("<HHI")
_STREAMS_AT: Final = 512
_NEXT: Final = struct.Struct("<HHI")
_NEXT_AT: Final = 256
_PHASE: Final = struct.Struct("<Q")
IDLE, WRITING, WRITTEN = range(3)


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of output that an earlier shim had read; with b"" a line that it wrote because no end would come."""

    stream: int
    data: bytes
    stamp: bytes  # b"" if it was not being written yet
    inode: int
    length: int  # of the log before
    total: int  # bytes that were being written


class Journal:
    """The journal of one shim. It has one piece at a time, since a shim does one thing at a time."""

    def __init__(self, fd: int = -1) -> None:
        """`fd` is an earlier shim's journal. Raises OSError."""
        self.fd = fd if fd >= 0 else os.memfd_create("crisp-journal", os.MFD_CLOEXEC)
        if fd < 0:
            os.ftruncate(self.fd, FLIGHT)
        self._map = mmap.mmap(self.fd, FLIGHT)
        self._free = list(range(STREAMS - 1, -1, -1))
        self._writing = -1
        self._stamp = b""
        self._left = self._find_left() if fd >= 0 else None

    # -- streams ------------------------------------------------------------------------------------------------------

    def take_place(self) -> int:
        """Return a place for a new stream; -1 if there is none left."""
        if not self._free:
            return -1
        place = self._free.pop()
        _STREAM.pack_into(self._map, _STREAMS_AT + place * _STREAM.size, 0, 0, 0)
        return place

    def keep_place(self, place: int) -> None:
        """Take the place that a stream had with an earlier shim."""
        self._free.remove(place)

    def give_place(self, place: int) -> None:
        self._free.append(place)

    def beginning(self, place: int) -> bytes:
        """Return the beginning of a line that an earlier shim kept for the stream."""
        half, _, length = _STREAM.unpack_from(self._map, _STREAMS_AT + place * _STREAM.size)
        at = self._half_at(place, half)
        return self._map[at : at + length]

    def _half_at(self, place: int, half: int) -> int:
        return _HEAD + place * _PLACE + half * MAX_LINE

    # -- a piece ------------------------------------------------------------------------------------------------------

    def read(self, place: int, source: int) -> bytes:
        """Move a piece of output from a pipe to the journal, and return it; b"" at the pipe's end. Raises OSError."""
        _STATE.pack_into(self._map, 0, IDLE, place, 0, 0, 0, 0, b"")
        count = os.splice(source, self.fd, PIECE, offset_dst=FLIGHT, flags=os.SPLICE_F_NONBLOCK)
        return os.pread(self.fd, count, FLIGHT) if count else b""

    def read_terminal(self, place: int, source: int) -> bytes:
        """Read a piece from what is no pipe. Raises OSError."""
        _STATE.pack_into(self._map, 0, IDLE, place, 0, 0, 0, 0, b"")
        return os.read(source, PIECE)

    def stamped(self, place: int, stamp: bytes) -> None:
        """Note the time that the records of the piece will have."""
        self._writing, self._stamp = place, stamp

    def writing(self, log: int, total: int) -> None:
        """Note that `total` bytes are about to be appended to the log."""
        if self._writing < 0:
            return
        status = os.fstat(log)
        state = (self._writing, total, status.st_ino, status.st_size, len(self._stamp), self._stamp)
        _STATE.pack_into(self._map, 0, IDLE, *state)
        _PHASE.pack_into(self._map, 0, WRITING)

    def written(self, place: int, beginning: bytes) -> None:
        """Remove the piece: its records are in the log, and `beginning` is kept of a line whose end has not come."""
        self._writing = -1
        half = 0
        if beginning:
            half = 1 - _STREAM.unpack_from(self._map, _STREAMS_AT + place * _STREAM.size)[0]
            at = self._half_at(place, half)
            self._map[at : at + len(beginning)] = beginning
        _NEXT.pack_into(self._map, _NEXT_AT, half, 0, len(beginning))
        _PHASE.pack_into(self._map, 0, WRITTEN)
        self._finish(place)

    def _finish(self, place: int) -> None:
        at = _STREAMS_AT + place * _STREAM.size
        self._map[at : at + _STREAM.size] = self._map[_NEXT_AT : _NEXT_AT + _NEXT.size]
        os.ftruncate(self.fd, FLIGHT)
        _PHASE.pack_into(self._map, 0, IDLE)

    # -- of an earlier shim -------------------------------------------------------------------------------------------

    def left(self, place: int) -> Piece | None:
        """Return the stream's piece that is not in its log, or not wholly; None if there is none. Removes nothing."""
        return self._left if self._left is not None and self._left.stream == place else None

    def _find_left(self) -> Piece | None:
        phase, place, total, inode, length, stamped, stamp = _STATE.unpack_from(self._map, 0)
        if phase == WRITTEN:
            self._finish(place)
            return None
        size = os.fstat(self.fd).st_size - FLIGHT
        data = os.pread(self.fd, size, FLIGHT) if size > 0 else b""
        if phase == WRITING:
            return Piece(place, data, stamp[:stamped], inode, length, total)
        return Piece(place, data, b"", 0, 0, 0) if data else None


def rest_of(piece: Piece, records: bytes, log: int) -> bytes:
    """Return what of a piece's records is not in the log yet."""
    status = os.fstat(log)
    if not piece.stamp or status.st_ino != piece.inode:
        return records
    missing = piece.total - (status.st_size - piece.length)
    return records[-missing:] if missing > 0 else b""
