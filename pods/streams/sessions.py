"""Exec and attach: the streams of a process in a container, as file descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from linux.terminal import resize
from pods.streams.command import Command, explained, fresh_key
from pods.streams.pipes import PIPE_BYTES, Pipes, closed, readable
from runtime.client import ShimClient
from runtime.errors import RuntimeCoreError
from runtime.wire import calls

if TYPE_CHECKING:
    from pods.life.shims import Shims
    from pods.model import Container
    from pods.state.memory import State

_TAIL: Final = 1 << 20  # bytes to read from a stream after its command has ended
_TERMINAL_GRACE: Final = 0.05  # seconds for a terminal's last output to pass through the kernel
_ENDED_SECONDS: Final = 2.0


Outputs = tuple[int, int]  # stdout, stderr
Ending = asyncio.Future[calls.ExecEnded] | asyncio.Future[calls.AttachEnded]


class StreamSession:
    """A process's standard streams as non-blocking descriptors, -1 for those it does not have.

    Write to `stdin`; read `stdout` and `stderr` with `read` or directly. A terminal has `stdout` only, and may report
    its end as EIO. The session owns the descriptors: close them with `close_stdin` and `close`, never with os.close.

    An exec's streams end with its command, even if a process that it left behind keeps them open. `read` handles that.
    Who reads directly must, once `wait` has returned, read until BlockingIOError and take that as the end. An
    attachment's streams end by themselves.
    """

    def __init__(self, container_id: str, answer: Ending, stdin: int, outputs: Outputs) -> None:
        self.stdin = stdin
        self.stdout, self.stderr = outputs
        self._container_id = container_id
        self._answer = answer

    async def wait(self) -> int | None:
        """Return the exit code of the command or attached container; None if the session ended before.

        Raises PodError if the streams were lost: the shim died, or this client did not read for too long.
        """
        await asyncio.wait({self._answer})
        with explained("streams of", self._container_id):
            return self._answer.result().code

    async def read(self, fd: int) -> bytes:
        """Return the next bytes of `stdout` or `stderr`, b"" at the end. One reader per stream. Raises OSError."""
        while True:
            try:
                return os.read(fd, PIPE_BYTES)
            except BlockingIOError:
                await readable(fd)
            except OSError as error:
                if error.errno != errno.EIO:  # EIO: no process has the terminal open any more
                    raise
                return b""

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in characters. Does nothing without a terminal, or after its end."""

    def close_stdin(self) -> None:
        """End the input. A process on a terminal does not notice."""
        self.stdin = closed(self.stdin)

    async def close(self) -> None:
        """End the session if it has not ended, and close its streams. May be called twice."""
        self._let_go()
        await asyncio.wait({self._answer}, timeout=_ENDED_SECONDS)
        if self._answer.done():
            self._answer.exception()  # mark it as retrieved

    def _let_go(self) -> None:
        self.close_stdin()
        self.stdout, self.stderr = closed(self.stdout), closed(self.stderr)


class ExecSession(StreamSession):
    """An exec. Closing it before its end kills the command and what that started."""

    def __init__(self, container_id: str, command: Command, ends: tuple[int, int, int], *, tty: bool) -> None:
        super().__init__(container_id, command.answer, ends[0], ends[1:])
        self.command = command
        self._tty = tty
        self._tail = dict.fromkeys(ends[1:], _TAIL)

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
                if error.errno != errno.EIO:  # EIO: no process has the terminal open any more
                    raise
                break
        if self._answer.done():
            self._tail[fd] -= len(data)
        return data

    async def resize(self, width: int, height: int) -> None:
        if self._tty and self.stdout >= 0:
            resize(self.stdout, width, height)

    async def close(self) -> None:
        self.abandon()
        await super().close()

    def abandon(self) -> None:
        """Like `close`, but without waiting."""
        self.command.kill()
        self._let_go()


class AttachSession(StreamSession):
    """An attachment. Closing it does not affect the container."""

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
    shim.tell(end)


def _grace(ended: bool, tty: bool) -> float | None:
    if not ended:
        return None
    return _TERMINAL_GRACE if tty else 0


def start_exec(
    shims: Shims, container: Container, argv: Sequence[str], streams: tuple[bool, bool, bool]
) -> ExecSession:
    """Run `argv` with pipes for the requested streams (stdin, stdout, stderr). A failure to execute shows at its end.

    Raises FailedPrecondition, PodError.
    """
    stdin, stdout, stderr = streams
    with explained("exec in", container.id), contextlib.ExitStack() as undo:
        shim = shims.of(container.sandbox_id)
        pipes = Pipes(stdin=stdin, stdout=stdout, stderr=stderr)
        undo.callback(pipes.close)
        command = Command(shim, container.id, argv, pipes.theirs)
        pipes.close_theirs()
        undo.pop_all()
        return ExecSession(container.id, command, pipes.take(), tty=False)


async def open_exec(
    state: State, shims: Shims, container_id: str, argv: Sequence[str], *, tty: bool, streams: tuple[bool, bool, bool]
) -> StreamSession:
    """Run `argv` with the requested streams (stdin, stdout, stderr), and wait until the program runs.

    Raises NotFound, InvalidArgument, FailedPrecondition, PodError (also for a program that cannot be executed).
    """
    container = state.running_container(container_id)
    if tty:
        return await _open_terminal(shims, container, argv, stdin=streams[0])
    session = start_exec(shims, container, argv, streams)
    with explained("exec in", container.id), contextlib.ExitStack() as undo:
        undo.callback(session.abandon)
        await session.command.running()
        undo.pop_all()
        return session


async def _open_terminal(shims: Shims, container: Container, argv: Sequence[str], *, stdin: bool) -> StreamSession:
    with explained("exec in", container.id), contextlib.ExitStack() as undo:
        command = Command(shims.of(container.sandbox_id), container.id, argv, (), terminal=True)
        undo.callback(command.kill)
        ends = _terminal_ends(await command.running(), stdin)
        undo.pop_all()
        return ExecSession(container.id, command, ends, tty=True)


def _terminal_ends(master: int, stdin: bool) -> tuple[int, int, int]:
    if master < 0:
        raise RuntimeCoreError("the command ended before its terminal was opened")
    try:
        os.set_blocking(master, False)
        return os.dup(master) if stdin else -1, master, -1
    except OSError:
        os.close(master)
        raise


async def open_attach(
    state: State, shims: Shims, container_id: str, streams: tuple[bool, bool, bool]
) -> StreamSession:
    """Attach to the requested streams (stdin, stdout, stderr) that the container has.

    Raises NotFound, InvalidArgument, FailedPrecondition, PodError.
    """
    container = state.running_container(container_id)
    stdin, stdout, stderr = streams
    config = container.config
    end = calls.Detach(container.id, fresh_key())
    with explained("attach to", container.id), contextlib.ExitStack() as undo:
        shim = shims.of(container.sandbox_id)
        pipes = Pipes(stdin=stdin and config.stdin, stdout=stdout, stderr=stderr and not config.tty)
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
