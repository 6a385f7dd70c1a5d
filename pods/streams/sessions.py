"""Streams to and from what runs in a container: exec and attach, as descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from linux.terminal import resize
from pods.streams.command import Command, explained, fresh_key
from runtime.client import ShimClient, ShimGone, close_all
from runtime.errors import RuntimeCoreError
from runtime.wire import calls

if TYPE_CHECKING:
    from pods.life.shims import Shims
    from pods.state.memory import State

PIPE_BYTES: Final = 256 << 10
_TAIL: Final = 1 << 20  # bytes of a stream that are read after its command has ended
_TERMINAL_GRACE: Final = 0.05  # seconds in which a terminal's last output finds its way through the kernel
_ENDED_SECONDS: Final = 2.0


Outputs = tuple[int, int]  # stdout, stderr
Ending = asyncio.Future[calls.ExecEnded] | asyncio.Future[calls.AttachEnded]


class StreamSession:
    """A process's standard streams as non-blocking descriptors, -1 where there is none.

    Write to `stdin`; read `stdout` and `stderr`, by `read` or oneself (a terminal has `stdout` only, and its end may
    show as EIO). The descriptors are the session's: they end with `close_stdin` and `close`, never by os.close.

    An exec's streams end with its command, though a process that it left behind may hold them open for ever: who reads
    by himself takes what is there once `wait` has returned, up to BlockingIOError, and calls that the end. `read` does
    so. An attachment's streams reach their end by themselves.
    """

    def __init__(self, container_id: str, answer: Ending, stdin: int, outputs: Outputs) -> None:
        self.stdin = stdin
        self.stdout, self.stderr = outputs
        self._container_id = container_id
        self._answer = answer

    async def wait(self) -> int | None:
        """The exit code of the command, or of the attached container; None if the session ended before that.

        Raises PodError when the streams were lost: the shim died, or this client did not read for too long.
        """
        await asyncio.wait({self._answer})
        with explained("streams of", self._container_id):
            return self._answer.result().code

    async def read(self, fd: int) -> bytes:
        """The next bytes of `stdout` or `stderr`, b"" at the end. One reader a stream. Raises OSError."""
        while True:
            try:
                return os.read(fd, PIPE_BYTES)
            except BlockingIOError:
                await readable(fd)
            except OSError as error:
                if error.errno != errno.EIO:  # nobody has the terminal open any more
                    raise
                return b""

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in characters; nothing happens without a terminal, or when it is gone."""

    def close_stdin(self) -> None:
        """There is no more input. A terminal's process notices nothing."""
        self.stdin = _closed(self.stdin)

    async def close(self) -> None:
        """End the session if it has not ended, and let go of its streams. May be called again."""
        self.close_stdin()
        self.stdout, self.stderr = _closed(self.stdout), _closed(self.stderr)
        await asyncio.wait({self._answer}, timeout=_ENDED_SECONDS)
        if self._answer.done():
            self._answer.exception()  # whoever does not wait does not want to know


class ExecSession(StreamSession):
    """Its command, and what that started, is killed when it is closed before its end."""

    def __init__(self, container_id: str, command: Command, stdin: int, outputs: Outputs, *, tty: bool) -> None:
        super().__init__(container_id, command.answer, stdin, outputs)
        self._command = command
        self._tty = tty
        self._tail = dict.fromkeys(outputs, _TAIL)

    async def read(self, fd: int) -> bytes:
        data = b""
        while self._tail[fd] > 0:
            try:
                data = os.read(fd, PIPE_BYTES)
                break
            except BlockingIOError:
                ended = self._answer.done()
                if not await readable(fd, self._answer, _grace(ended, self._tty)) and ended:
                    break
            except OSError as error:
                if error.errno != errno.EIO:  # nobody has the terminal open any more
                    raise
                break
        if self._answer.done():
            self._tail[fd] -= len(data)
        return data

    async def resize(self, width: int, height: int) -> None:
        if self._tty and self.stdout >= 0:
            resize(self.stdout, width, height)

    async def close(self) -> None:
        self._command.kill()
        await super().close()


class AttachSession(StreamSession):
    """The container goes on when it is closed."""

    def __init__(
        self,
        shim: ShimClient,
        end: calls.Detach,
        answer: asyncio.Future[calls.AttachEnded],
        stdin: int,
        outputs: Outputs,
    ) -> None:
        super().__init__(end.container, answer, stdin, outputs)
        self._shim = shim
        self._end = end

    async def resize(self, width: int, height: int) -> None:
        with contextlib.suppress(RuntimeCoreError):  # the container has ended
            await self._shim.call(calls.Resize(self._container_id, width, height))

    async def close(self) -> None:
        _detach(self._shim, self._end)
        await super().close()


def _detach(shim: ShimClient, end: calls.Detach) -> None:
    with contextlib.suppress(ShimGone):
        shim.begin(end)


async def readable(fd: int, or_done: asyncio.Future[Any] | None = None, timeout: float | None = None) -> bool:
    """Wait until there is something to read, for the future or for so many seconds; whether there is."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def told() -> None:
        loop.remove_reader(fd)
        ready.set_result(None)

    loop.add_reader(fd, told)
    try:
        awaited = {ready} if or_done is None or or_done.done() else {ready, or_done}
        await asyncio.wait(awaited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        return ready.done()
    finally:
        if not ready.done():
            loop.remove_reader(fd)


class _Pipes:
    """The pipes of a session: ours are non-blocking, theirs are for the process, or the host's null device."""

    def __init__(self, *, stdin: bool, stdout: bool, stderr: bool) -> None:
        self._ours: list[int] = []
        self._theirs: list[int] = []
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for index, wanted in enumerate((stdin, stdout, stderr)):
                self._add(wanted, ours_writes=index == 0)
            undo.pop_all()

    def _add(self, wanted: bool, *, ours_writes: bool) -> None:
        if not wanted:
            self._ours.append(-1)
            self._theirs.append(os.open(os.devnull, (os.O_RDONLY if ours_writes else os.O_WRONLY) | os.O_CLOEXEC))
            return
        reader, writer = os.pipe()
        ours, theirs = (writer, reader) if ours_writes else (reader, writer)
        self._ours.append(ours)
        self._theirs.append(theirs)
        os.set_blocking(ours, False)
        with contextlib.suppress(OSError):  # more than the user's pipes may have: slower, no worse
            fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    @property
    def theirs(self) -> tuple[int, int, int]:
        stdin, stdout, stderr = self._theirs
        return stdin, stdout, stderr

    def wanted(self) -> dict[str, int]:
        """Their ends of what was asked for, by name."""
        names = ("stdin", "stdout", "stderr")
        return {name: fd for name, fd, ours in zip(names, self._theirs, self._ours, strict=True) if ours >= 0}

    def take(self) -> tuple[int, int, int]:
        """Our ends, from now on the caller's."""
        stdin, stdout, stderr = self._ours
        self._ours = []
        return stdin, stdout, stderr

    def close_theirs(self) -> None:
        close_all(self._theirs)
        self._theirs = []

    def close(self) -> None:
        self.close_theirs()
        close_all(fd for fd in self._ours if fd >= 0)
        self._ours = []


def _closed(fd: int) -> int:
    if fd >= 0:
        os.close(fd)
    return -1


def _grace(ended: bool, tty: bool) -> float | None:
    if not ended:
        return None
    return _TERMINAL_GRACE if tty else 0


async def open_exec(
    state: State, shims: Shims, container_id: str, argv: Sequence[str], *, tty: bool, streams: tuple[bool, bool, bool]
) -> StreamSession:
    """Run `argv` with the wanted ones of stdin, stdout, stderr. Raises NotFound, InvalidArgument, FailedPrecondition,
    PodError (also for a program that cannot be executed).
    """
    container = state.running_container(container_id)
    stdin, stdout, stderr = streams
    with explained("exec in", container.id), contextlib.ExitStack() as undo:
        shim = shims.of(container.sandbox_id)
        pipes = _Pipes(stdin=stdin and not tty, stdout=stdout and not tty, stderr=stderr)
        undo.callback(pipes.close)
        command = Command(shim, container.id, argv, () if tty else pipes.theirs, terminal=tty)
        undo.callback(command.kill)
        pipes.close_theirs()
        master = await command.running()
        ends = _terminal_ends(master, stdin) if tty else pipes.take()
        undo.pop_all()
        return ExecSession(container.id, command, ends[0], ends[1:], tty=tty)


def _terminal_ends(master: int, stdin: bool) -> tuple[int, int, int]:
    if master < 0:
        raise RuntimeCoreError("it ended before its terminal could be had")
    try:
        os.set_blocking(master, False)
        return os.dup(master) if stdin else -1, master, -1
    except OSError:
        os.close(master)
        raise


async def open_attach(
    state: State, shims: Shims, container_id: str, streams: tuple[bool, bool, bool]
) -> StreamSession:
    """Attach to the wanted ones of stdin, stdout, stderr that the container has. Raises NotFound, InvalidArgument,
    FailedPrecondition, PodError.
    """
    container = state.running_container(container_id)
    stdin, stdout, stderr = streams
    config = container.config
    end = calls.Detach(container.id, fresh_key())
    with explained("attach to", container.id), contextlib.ExitStack() as undo:
        shim = shims.of(container.sandbox_id)
        pipes = _Pipes(stdin=stdin and config.stdin, stdout=stdout, stderr=stderr and not config.tty)
        undo.callback(pipes.close)
        wanted = pipes.wanted()
        answer = shim.begin(calls.Attach(container.id, end.attach, tuple(wanted)), tuple(wanted.values()))
        undo.callback(_detach, shim, end)
        pipes.close_theirs()
        begun = shim.begin(calls.Sync())
        await asyncio.wait({begun})
        if answer.done():
            answer.result()
        begun.result()
        stdin_end, *outputs = pipes.take()
        undo.pop_all()
        return AttachSession(shim, end, answer, stdin_end, (outputs[0], outputs[1]))
