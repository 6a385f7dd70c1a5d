"""Handles the shim's ends of a container's standard streams: output goes to the log, input stays open for attach."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from runtime.light import contextlib
from runtime.logs.writer import Clock, LineFormatter, LogFile, complain
from runtime.shim.journal import PIECE, Journal, rest_of
from runtime.shim.loop import READ


class Loop(Protocol):
    """The part of the shim's event loop that streams need."""

    def watch(self, fd: int, events: int, ready: Callable[[int], None]) -> None: ...

    def unwatch(self, fd: int) -> None: ...


class Sink(Protocol):
    """Receives a copy of an output."""

    def put(self, data: bytes) -> None: ...

    def finish(self) -> None: ...


class OutputStream:
    """A pipe or terminal that the shim reads: its data goes to the log, and then to every sink."""

    def __init__(
        self, fd: int, name: str, log: LogFile, clock: Clock, loop: Loop, journal: Journal, place: int | None = None
    ) -> None:
        """`place` is the stream's place in the journal, if it is an earlier shim's; -1 if it has none."""
        os.set_blocking(fd, False)
        self._fd = fd
        self.name = name
        self._sinks: list[Sink] = []
        self._journal = journal
        self.place = journal.take_place() if place is None else place
        self._is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
        self._log = log
        self._clock = clock
        self._loop = loop
        self._log_failed = False
        if place is None or place < 0:
            self._formatter = LineFormatter(name)
        else:
            self._succeed(place)
        loop.watch(fd, READ, self._ready)

    def _succeed(self, place: int) -> None:
        """Go on where an earlier shim was: it may have read what it has not written."""
        self._journal.keep_place(place)
        self._formatter = LineFormatter(self.name, self._journal.beginning(place))
        piece = self._journal.left(place)
        if piece is None:
            return
        stamp = piece.stamp or self._clock.stamp()
        records = self._formatter.feed(piece.data, stamp) if piece.data else self._formatter.finish(stamp)
        self._write(rest_of(piece, records, self._log.fd))
        self._journal.written(place, self._formatter.beginning)

    @property
    def fd(self) -> int:
        """What is read; -1 after its end."""
        return self._fd

    def _ready(self, _events: int) -> None:
        self._read_once()

    def _read_once(self) -> bool:
        """Copy one piece to the log. Return False if there is nothing to read now, or at end of file."""
        try:
            data = self._read()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:  # the terminal's other end is closed
                complain(f"could not read a container's output: {error}")
            data = b""
        if not data:
            self.close()
            return False
        stamp = self._clock.stamp()
        self._write_by_journal(self._formatter.feed(data, stamp), stamp)
        for sink in tuple(self._sinks):
            sink.put(data)
        return True

    def _read(self) -> bytes:
        if self.place < 0:
            return os.read(self._fd, PIECE)
        if self._is_pipe:
            return self._journal.read(self.place, self._fd)
        return self._journal.read_terminal(self.place, self._fd)

    def _write_by_journal(self, records: bytes, stamp: bytes) -> None:
        if self.place < 0:
            self._write(records)
            return
        if self._is_pipe:
            self._journal.stamped(self.place, stamp)
        self._write(records)
        self._journal.written(self.place, self._formatter.beginning)

    def add_sink(self, sink: Sink) -> None:
        """Send the sink everything that is read from now on."""
        if self._fd < 0:
            sink.finish()
        else:
            self._sinks.append(sink)

    def remove_sink(self, sink: Sink) -> None:
        """Send the sink nothing any more. It is no error if it is unknown."""
        with contextlib.suppress(ValueError):
            self._sinks.remove(sink)

    def _write(self, records: bytes) -> None:
        try:
            self._log.write(records)
            self._log_failed = False
        except OSError as error:
            # A full disk must not stop the container: output is lost, and that is logged once.
            if not self._log_failed:
                complain(f"could not write the container's log; output is lost: {error}")
            self._log_failed = True

    def drain(self) -> None:
        """Read what the exited container left in the pipe, then close it, even if others still have the other end."""
        limit = 1 << 12
        while self._fd >= 0 and limit and self._read_once():
            limit -= 1
        self.close()

    def close(self) -> None:
        if self._fd < 0:
            return
        self._loop.unwatch(self._fd)
        os.close(self._fd)
        self._fd = -1
        stamp = self._clock.stamp()
        if records := self._formatter.finish(stamp):
            self._write_by_journal(records, stamp)
        if self.place >= 0:
            self._journal.give_place(self.place)
            self.place = -1
        for sink in self._sinks:
            sink.finish()
        self._sinks.clear()


@dataclass(slots=True)
class ContainerStdio:
    """Both ends of a container's streams between clone and execve; after that only the shim's."""

    child: tuple[int, int, int]  # descriptors that become init's 0, 1 and 2; (-1, -1, -1) with a terminal
    outputs: list[tuple[int, str]]  # (descriptor to read, stream name)
    stdin: int  # write end, -1 if standard input is /dev/null

    @classmethod
    def make(cls, *, terminal: bool, stdin: bool) -> ContainerStdio:
        """Make pipes for the streams. With a terminal there are none: init opens it inside the container."""
        if terminal:
            return cls((-1, -1, -1), [], -1)
        opened: list[int] = []
        try:
            opened += os.pipe() if stdin else (os.open(os.devnull, os.O_RDONLY), -1)
            opened += os.pipe()
            opened += os.pipe()
        except OSError:
            for fd in opened:
                if fd >= 0:
                    os.close(fd)
            raise
        read_in, write_in, out_read, out_write, err_read, err_write = opened
        return cls((read_in, out_write, err_write), [(out_read, "stdout"), (err_read, "stderr")], write_in)

    def close_child_ends(self) -> None:
        for fd in self.child:
            if fd >= 0:
                os.close(fd)
        self.child = (-1, -1, -1)

    def close(self) -> None:
        """Close all descriptors that are still ours."""
        self.close_child_ends()
        for fd, _name in self.outputs:
            os.close(fd)
        self.outputs = []
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1


