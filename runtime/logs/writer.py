"""Writes container logs in CRI's format (kubernetes design: CRI logging): one record per line of output.

    2026-01-02T03:04:05.123456789Z stdout F hello
    2026-01-02T03:04:05.123456790Z stderr P the first 16 KiB of a line without an end

Readers (kubelet, crictl) add a newline after F and none after P, so a last line without a newline is a P too.

`LineFormatter` does no I/O. `LogFile` appends whole records with single writes, so readers see no torn records unless
the kernel takes only a part of a write.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from runtime.light import contextlib
from runtime.logs.place import open_to_append, set_aside

_NEWLINE: Final = 10
MAX_LINE: Final = 16 << 10  # bytes of content in one record; longer lines continue in records tagged P
_PART: Final = MAX_LINE // 2
_BURST: Final = 256 << 10  # bytes: more than the records of what is read at once, unless its lines are very short


def complain(text: str) -> None:
    """Write a line to the shim's own log. Never raises: it often reports that this log's disk is full."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="backslashreplace"))


class LineFormatter:
    """Splits the byte stream of `stream` ("stdout" or "stderr") into log records."""

    def __init__(self, stream: str, beginning: bytes = b"") -> None:
        """`beginning` is that of a line whose end has not come yet."""
        self._full = f" {stream} F ".encode()
        self._partial = f" {stream} P ".encode()
        self._pending = beginning

    @property
    def beginning(self) -> bytes:
        """The beginning of a line whose end has not come yet: at most MAX_LINE bytes."""
        return self._pending

    def feed(self, data: bytes, timestamp: bytes) -> bytes:
        """Return the records of the complete lines so far, and keep the beginning of the next line."""
        if self._has_short_lines(data):
            return self._feed_short(data, timestamp)
        lines = (self._pending + data).split(b"\n") if self._pending else data.split(b"\n")
        rest = lines.pop()
        full = timestamp + self._full
        records: list[bytes] = []
        for line in lines:
            if len(line) > MAX_LINE:
                line = self._split_long(line, timestamp, records)
            records += (full, line, b"\n")
        if len(rest) > MAX_LINE:
            rest = self._split_long(rest, timestamp, records)
        self._pending = rest
        return b"".join(records)

    def _has_short_lines(self, data: bytes) -> bool:
        """Return whether a line ends in the data, and none is too long for one record. Looks at few of the bytes."""
        first = data.find(b"\n")
        if first < 0 or len(self._pending) + first > MAX_LINE:
            return False
        # A line of MAX_LINE bytes would fill one of these parts.
        return all(data.find(b"\n", start, start + _PART) >= 0 for start in range(0, len(data) - _PART + 1, _PART))

    def _feed_short(self, data: bytes, timestamp: bytes) -> bytes:
        """Do what `feed` does without a loop over lines, which costs seven times as much."""
        full = timestamp + self._full
        pending, end = self._pending, data.rfind(b"\n")
        self._pending = data[end + 1 :]
        return b"".join((full, pending, data[:end].replace(b"\n", b"\n" + full), b"\n"))

    def _split_long(self, line: bytes, timestamp: bytes, records: list[bytes]) -> bytes:
        start = 0
        partial = timestamp + self._partial
        while len(line) - start > MAX_LINE:
            records += (partial, line[start : start + MAX_LINE], b"\n")
            start += MAX_LINE
        return line[start:]

    def finish(self, timestamp: bytes) -> bytes:
        """Return the record of a last line without a newline."""
        pending, self._pending = self._pending, b""
        return b"".join((timestamp, self._partial, pending, b"\n")) if pending else b""


class Clock:
    """Formats RFC 3339 timestamps with nanoseconds, UTC. Formats the date once a second."""

    def __init__(self, now: Callable[[], int] = time.time_ns) -> None:
        self._now = now
        self._second = -1
        self._prefix = ""

    def stamp(self) -> bytes:
        second, nanos = divmod(self._now(), 1_000_000_000)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._prefix}.{nanos:09d}Z".encode()


class Rate:
    """Decides which records are written if there are too many: `rate` bytes a second, and one second's at once.

    Whole records are dropped and counted; the container is not held up.
    """

    def __init__(self, rate: int, now: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._now = rate, now
        self._most = max(rate, _BURST)
        self._left = float(self._most)
        self._at = now()
        self._lines = self._bytes = 0  # dropped since it was told

    def passes(self, records: bytes) -> bool:
        """Return whether the records may be written; else count them as dropped."""
        at = self._now()
        self._left, self._at = min(self._most, self._left + (at - self._at) * self._rate), at
        if len(records) <= self._left:
            self._left -= len(records)
            return True
        self._lines += records.count(b"\n")
        self._bytes += len(records)
        return False

    @property
    def owes(self) -> bool:
        """Whether it is to be told that something was dropped."""
        return self._lines > 0

    def told(self, timestamp: bytes) -> bytes:
        """Return the record that tells what was dropped since the last one; b"" if nothing was."""
        if not self._lines:
            return b""
        text = f"crisp dropped {self._lines} lines ({self._bytes} bytes): more than {self._rate} bytes a second"
        self._lines = self._bytes = 0
        return b"%b stderr F %b\n" % (timestamp, text.encode())


class Counts:
    """Bytes and lines of a log."""

    __slots__ = ("bytes", "lines")

    def __init__(self) -> None:
        self.bytes = self.lines = 0

    def add(self, records: bytes) -> None:
        self.bytes += len(records)
        self.lines += records.count(b"\n")


class LogFile:
    """An append-only log file that can be reopened after rotation. An empty path discards all output.

    For `trusted` see `place.open_to_append`. Before a file exceeds `limit` bytes (0: none) it is renamed to `path`.1,
    and a new one is begun: kubelet looks only every ten seconds, and a disk may be full before. For `rate` see `Rate`;
    0 for any.
    """

    def __init__(self, path: str, trusted: str = "", limit: int = 0, rate: int = 0, fd: int = -1) -> None:
        """`fd` is the file, if it is open already."""
        self.renewed: Callable[[], None] = lambda: None  # called when another file was begun
        self.writing: Callable[[int, int], None] = lambda _fd, _bytes: None  # called before bytes are appended
        self._path = path
        self._trusted = trusted
        self._limit = limit
        self._rate = Rate(rate) if rate else None
        self.written, self.dropped, self.lost = Counts(), Counts(), Counts()
        self._size = 0
        self._fd = fd
        self._torn = False
        if fd < 0:
            self.reopen()
        elif limit:
            self._size = os.fstat(fd).st_size

    @property
    def owes(self) -> bool:
        """Whether the next record depends on what only this object knows: lines were dropped, or a record is torn."""
        return self._torn or (self._rate is not None and self._rate.owes)

    @property
    def fd(self) -> int:
        """The open file; -1 for none."""
        return self._fd

    def reopen(self) -> None:
        """Open the path again (kubelet renamed the old file) and close the old descriptor. Raises OSError."""
        if not self._path:
            return
        fresh = open_to_append(self._path, self._trusted)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fresh
        self._torn = False
        self._size = os.fstat(fresh).st_size if self._limit else 0
        self.renewed()

    def _rotate(self) -> None:
        try:
            set_aside(self._path, self._trusted, self._fd)
            self.reopen()
        except OSError as error:
            complain(f"could not begin a new log: {error}")
            self._size = 0  # try again after as many bytes

    def write(self, records: bytes) -> None:
        """Append. On OSError (ENOSPC, EIO) the rest is lost, but the next record starts a new line."""
        if self._fd < 0 or not records:
            return
        told = b""
        if self._rate is not None:
            if not self._rate.passes(records):
                self.dropped.add(records)
                return
            told = self._rate.told(records.partition(b" ")[0])
        try:
            self._append(told + records)
        except OSError:
            self.lost.add(records)
            raise
        self.written.add(records)

    def _append(self, records: bytes) -> None:
        if self._limit and self._size and self._size + len(records) > self._limit:
            self._rotate()
        self._size += len(records)
        if self._torn:
            records = b"\n" + records
        self.writing(self._fd, len(records))
        written = os.write(self._fd, records)
        self._torn = False
        while written < len(records):
            self._torn = records[written - 1] != _NEWLINE
            written += os.write(self._fd, memoryview(records)[written:])
        self._torn = False

    def close(self) -> None:
        if self._fd < 0:
            return
        if self._rate is not None and (told := self._rate.told(Clock().stamp())):
            try:
                self._append(told)
            except OSError as error:
                complain(f"could not write how many lines of a log were dropped: {error}")
        os.close(self._fd)
        self._fd = -1
