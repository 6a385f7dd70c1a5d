"""The shim's ends of a container's standard streams: output into the log, input kept open for attach."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from runtime.logs.writer import Clock, LineFormatter, LogFile, complain

_CHUNK: Final = 64 << 10


class Loop(Protocol):
    """The part of the shim's event loop that streams need."""

    def watch(self, fd: int, events: int, ready: Callable[[int], None]) -> None: ...

    def unwatch(self, fd: int) -> None: ...


class Sink(Protocol):
    """Who gets a copy of an output."""

    def put(self, data: bytes) -> None: ...

    def finish(self) -> None: ...


class OutputStream:
    """One pipe or terminal read by the shim, written to the log, and then to every sink, as it comes."""

    def __init__(self, fd: int, name: str, log: LogFile, clock: Clock, loop: Loop) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self.name = name
        self._sinks: list[Sink] = []
        self._formatter = LineFormatter(name)
        self._log = log
        self._clock = clock
        self._loop = loop
        self._log_failed = False
        loop.watch(fd, selectors.EVENT_READ, self._ready)

    def _ready(self, _events: int) -> None:
        self._read_once()

    def _read_once(self) -> bool:
        """Move one chunk to the log. False when nothing is left for now, or for ever."""
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:  # a terminal whose last user left
                complain(f"read output: {error}")
            data = b""
        if not data:
            self.close()
            return False
        self._write(self._formatter.feed(data, self._clock.stamp()))
        for sink in tuple(self._sinks):
            sink.put(data)
        return True

    def add_sink(self, sink: Sink) -> None:
        """Give it what is read from now on."""
        if self._fd < 0:
            sink.finish()
        else:
            self._sinks.append(sink)

    def remove_sink(self, sink: Sink) -> None:
        """Give it nothing any more, if it got anything."""
        with contextlib.suppress(ValueError):
            self._sinks.remove(sink)

    def _write(self, records: bytes) -> None:
        try:
            self._log.write(records)
            self._log_failed = False
        except OSError as error:
            # A full disk must not stop the container; what cannot be written is lost, and said so once.
            if not self._log_failed:
                complain(f"write log: {error}")
            self._log_failed = True

    def drain(self) -> None:
        """Read what the exited container left in the pipe, then close, whoever else still holds the other end."""
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
        self._write(self._formatter.finish(self._clock.stamp()))
        for sink in self._sinks:
            sink.finish()
        self._sinks.clear()


@dataclass(slots=True)
class ContainerStdio:
    """Both ends of a container's streams between clone and execve; afterwards only the shim's."""

    child: tuple[int, int, int]  # what init makes its 0, 1 and 2; (-1, -1, -1) with a terminal
    outputs: list[tuple[int, str]]  # (descriptor to read, stream name)
    stdin: int  # the write end, -1 when standard input is /dev/null

    @classmethod
    def make(cls, *, terminal: bool, stdin: bool) -> ContainerStdio:
        """Pipes for the streams; with a terminal the pair is made by init, inside the container."""
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
        """Close everything that is still ours."""
        self.close_child_ends()
        for fd, _name in self.outputs:
            os.close(fd)
        self.outputs = []
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1


