"""Attaches clients to a running container: copies its output to them and passes their input on.

No client can block the container or its log: unread output is kept on disk up to a limit, and a client beyond it is
dropped. A client's input waits in its pipe while the container does not read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from runtime.errors import OperationFailed, RuntimeCoreError
from runtime.logs.spool import Spool
from runtime.shim.loop import READ, WRITE
from runtime.shim.reply import Reply
from runtime.shim.stdio import Loop, OutputStream
from runtime.wire.calls import AttachEnded

MAX_UNREAD: Final = 64 << 20  # bytes kept for a client's stream, in addition to its pipe
_CHUNK: Final = 64 << 10


class Sink:
    """A client's pipe for one stream. Data that does not fit waits in a file below `directory`.

    `on_lost` is called with "" when the client has closed its pipe, or with the reason why the client is dropped.
    """

    def __init__(self, fd: int, directory: str, loop: Loop, on_lost: Callable[[str], None]) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._directory = directory
        self._loop = loop
        self._on_lost = on_lost
        self._spool: Spool | None = None
        self._finishing = False

    def put(self, data: bytes) -> None:
        """Write the data, now or when the client reads."""
        rest = memoryview(data)
        if not self._spool:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                pass
            except OSError:
                self._lose("")
                return
        if rest:
            self._keep(rest)

    def _keep(self, data: memoryview) -> None:
        try:
            if self._spool is None:
                self._spool = Spool(self._directory, MAX_UNREAD)
            if not self._spool:
                self._loop.watch(self._fd, WRITE, self._write)
            if not self._spool.put(data):
                self._lose(f"the client was detached: it has not read more than {MAX_UNREAD >> 20} MiB of output")
        except OSError as error:
            self._lose(f"the client was detached: could not store its unread output: {error.strerror}")

    def _write(self, _events: int) -> None:
        assert self._spool is not None
        try:
            while data := self._spool.peek(_CHUNK):
                self._spool.drop(os.write(self._fd, data))
        except BlockingIOError:
            return
        except OSError:
            self._lose("")
            return
        self._loop.unwatch(self._fd)
        if self._finishing:
            self._close()

    def finish(self) -> None:
        """Close the pipe as soon as everything is written: no more data will come."""
        self._finishing = True
        if not self._spool:
            self._close()

    def _lose(self, reason: str) -> None:
        self._close()
        self._on_lost(reason)

    def _close(self) -> None:
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self._spool is not None:
            self._spool.close()
            self._spool = None


class Inflow:
    """Copies a client's input to a container's standard input.

    `on_end` is called with True when the client has closed its end, or with False when the container has. Both
    descriptors are duplicated.
    """

    def __init__(self, source: int, target: int, loop: Loop, on_end: Callable[[bool], None]) -> None:
        self._source = os.dup(source)
        try:
            self._target = os.dup(target)
        except OSError:
            os.close(self._source)
            raise
        os.set_blocking(source, False)
        os.set_blocking(target, False)
        self._loop = loop
        self._on_end = on_end
        self._waiting = b""
        loop.watch(self._source, READ, self._read)

    def _read(self, _events: int) -> None:
        try:
            data = os.read(self._source, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            self.close()
            self._on_end(True)
            return
        self._waiting = data
        self._write()

    def _write(self, _events: int = 0) -> None:
        try:
            self._waiting = self._waiting[os.write(self._target, self._waiting) :]
        except BlockingIOError:
            pass
        except OSError:
            self.close()  # the client gets EPIPE
            self._on_end(False)
            return
        # Only one of the two is watched: data is read only when it can be passed on.
        if self._waiting:
            self._loop.unwatch(self._source)
            self._loop.watch(self._target, WRITE, self._write)
        else:
            self._loop.unwatch(self._target)
            self._loop.watch(self._source, READ, self._read)

    def close(self) -> None:
        """Close both descriptors."""
        for fd in (self._source, self._target):
            if fd >= 0:
                self._loop.unwatch(fd)
                os.close(fd)
        self._source = self._target = -1


@dataclass(slots=True)
class _Client:
    reply: Reply
    sinks: list[tuple[OutputStream, Sink]] = field(default_factory=list)


class Attachments:
    """The clients of one container: of its outputs and of its standard input's write end (-1 for none)."""

    def __init__(
        self,
        outputs: Sequence[OutputStream],
        stdin: int,
        directory: str,
        loop: Loop,
        *,
        stdin_once: bool,
        stdin_closed: Callable[[], None],
    ) -> None:
        """Owns `stdin` from now on. With `stdin_once` it is closed when the first client's input ends, and
        `stdin_closed` called. Unread output is stored in `directory`.
        """
        self._stdin_closed = stdin_closed
        self._directory = directory
        self._outputs = {output.name: output for output in outputs}
        self._stdin = stdin
        self._loop = loop
        self._stdin_once = stdin_once
        self._clients: dict[str, _Client] = {}
        self._inflows: dict[str, Inflow] = {}  # an inflow outlives its client until all its input is passed on

    @property
    def stdin(self) -> int:
        """The container's standard input; -1 if it has none, or it is closed."""
        return self._stdin

    @property
    def in_use(self) -> bool:
        """Whether there are clients, or input of clients that the container has not read yet."""
        return bool(self._clients or self._inflows)

    def attach(self, name: str, fds: Mapping[str, int], reply: Reply) -> None:
        """Attach a client by its pipes for "stdin", "stdout" and "stderr", which are duplicated.

        It gets all output from now on. `reply` is called once, at the end: with the container's exit code, with None if
        the client was detached before, or with an error.
        """
        client = self._clients[name] = _Client(reply)

        def lost(reason: str) -> None:
            self._end(name, RuntimeCoreError(reason) if reason else AttachEnded())

        try:
            for stream, fd in fds.items():
                if stream != "stdin":
                    sink = Sink(os.dup(fd), self._directory, self._loop, lost)
                    client.sinks.append((self._outputs[stream], sink))
                    self._outputs[stream].add_sink(sink)
                elif self._stdin >= 0:
                    self._inflows[name] = Inflow(fd, self._stdin, self._loop, partial(self._input_ended, name))
        except OSError as error:  # the shim has run out of descriptors
            self._end(name, OperationFailed.of("attach", name, error))

    def _input_ended(self, name: str, by_client: bool) -> None:
        del self._inflows[name]
        if not by_client:
            return
        if self._stdin_once:
            self.close_stdin()
            self._stdin_closed()
        else:
            self.detach(name)

    def detach(self, name: str) -> None:
        """End a client's attachment, if there is one."""
        self._end(name, AttachEnded())

    def _end(self, name: str, result: AttachEnded | RuntimeCoreError) -> None:
        client = self._clients.pop(name, None)
        if client is None:
            return
        for output, sink in client.sinks:
            output.remove_sink(sink)
            sink.finish()
        client.reply(result)

    def close_stdin(self) -> None:
        """Close the container's input. What is in its pipe can still be read."""
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1
        for inflow in self._inflows.values():
            inflow.close()
        self._inflows.clear()

    def exited(self, code: int) -> None:
        """End all attachments: the container has exited and its outputs are drained."""
        for name in list(self._clients):
            self._end(name, AttachEnded(code))
        self.close_stdin()
