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
from pods.streams.places import connect, has_shim
from runtime.errors import RuntimeCoreError
from runtime.wire import calls

if TYPE_CHECKING:
    from pods.streams.places import ContainerPlace
    from runtime.client import ShimClient

_TAIL: Final = 1 << 20  # bytes to read from a stream after its command has ended
_TERMINAL_GRACE: Final = 0.05  # seconds for a terminal's last output to pass through the kernel
_ENDED_SECONDS: Final = 2.0


Outputs = tuple[int, int]  # stdout, stderr
Ending = asyncio.Future[calls.ExecEnded] | asyncio.Future[calls.AttachEnded]


class StreamSession:
    """A process's standard streams as non-blocking descriptors, -1 for those it does not have.

    Write to `stdin`; read `stdout` and `stderr` with `read` or directly. A terminal has `stdout` only, and may report
    its end as EIO. The session owns the descriptors: close them with `close_stdin` and `close`, never with os.close.
    Its connection to the shim is its own, too: it needs nothing of the daemon.

    An exec's streams end with its command, even if a process that it left behind keeps them open. `read` handles that.
    Who reads directly must, once `wait` has returned, read until BlockingIOError and take that as the end. An
    attachment's streams end by themselves.
    """

    def __init__(
        self, place: ContainerPlace, shim: ShimClient, answer: Ending, stdin: int, outputs: Outputs
    ) -> None:
        self.stdin = stdin
        self.stdout, self.stderr = outputs
        self._place = place
        self._shim = shim
        self._answer = answer

    async def wait(self) -> int | None:
        """Return the exit code of the command or attached container; None if the session ended before.

        Raises PodError if the streams were lost: the shim died, or this client did not read for too long.
        """
        await asyncio.wait({self._answer})
        with _explained("streams of", self._place):
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
        self._shim.close()
        if self._answer.done():
            self._answer.exception()  # mark it as retrieved

    def _let_go(self) -> None:
        self.close_stdin()
        self.stdout, self.stderr = closed(self.stdout), closed(self.stderr)


class ExecSession(StreamSession):
    """An exec. Closing it before its end kills the command and what that started."""

    def __init__(
        self, place: ContainerPlace, shim: ShimClient, command: Command, ends: tuple[int, int, int], *, tty: bool
    ) -> None:
        super().__init__(place, shim, command.answer, ends[0], ends[1:])
        self._command = command
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
        self._command.kill()
        await super().close()


class AttachSession(StreamSession):
    """An attachment. Closing it does not affect the container."""

    def __init__(
        self,
        place: ContainerPlace,
        shim: ShimClient,
        end: calls.Detach,
        answer: asyncio.Future[calls.AttachEnded],
        ends: tuple[int, int, int],
    ) -> None:
        super().__init__(place, shim, answer, ends[0], ends[1:])
        self._end = end

    async def resize(self, width: int, height: int) -> None:
        with contextlib.suppress(RuntimeCoreError):  # the container has ended
            await self._shim.call(calls.Resize(self._place.container, width, height))

    async def close(self) -> None:
        self._shim.tell(self._end)
        await super().close()


def _grace(ended: bool, tty: bool) -> float | None:
    if not ended:
        return None
    return _TERMINAL_GRACE if tty else 0


def _explained(operation: str, place: ContainerPlace) -> contextlib.AbstractContextManager[None]:
    return explained(operation, place.container, lambda: has_shim(place))


async def open_exec(
    place: ContainerPlace, argv: Sequence[str], *, tty: bool, stdin: bool, stdout: bool, stderr: bool
) -> StreamSession:
    """Run `argv` with the requested streams, and wait until the program runs.

    Raises FailedPrecondition, Unavailable, PodError (also for a program that cannot be executed).
    """
    with _explained("exec in", place), contextlib.ExitStack() as undo:
        shim = connect(place)
        undo.callback(shim.close)
        if tty:
            command = Command(shim, place.container, argv, (), terminal=True)
            undo.callback(command.kill)
            ends = _terminal_ends(await command.running(), stdin)
        else:
            pipes = Pipes(stdin=stdin, stdout=stdout, stderr=stderr)
            undo.callback(pipes.close)
            command = Command(shim, place.container, argv, pipes.theirs)
            undo.callback(command.kill)
            pipes.close_theirs()
            await command.running()
            ends = pipes.take()
        undo.pop_all()
        return ExecSession(place, shim, command, ends, tty=tty)


def _terminal_ends(master: int, stdin: bool) -> tuple[int, int, int]:
    if master < 0:
        raise RuntimeCoreError("the command ended before its terminal was opened")
    try:
        os.set_blocking(master, False)
        return os.dup(master) if stdin else -1, master, -1
    except OSError:
        os.close(master)
        raise


async def open_attach(place: ContainerPlace, *, stdin: bool, stdout: bool, stderr: bool) -> StreamSession:
    """Attach to the requested streams that the container has. Raises FailedPrecondition, Unavailable, PodError."""
    end = calls.Detach(place.container, fresh_key())
    with _explained("attach to", place), contextlib.ExitStack() as undo:
        shim = connect(place)
        undo.callback(shim.close)
        pipes = Pipes(stdin=stdin and place.stdin, stdout=stdout, stderr=stderr and not place.terminal)
        undo.callback(pipes.close)
        wanted = pipes.wanted()
        answer = shim.begin(calls.Attach(place.container, end.attach, tuple(wanted)), tuple(wanted.values()))
        undo.callback(shim.tell, end)
        pipes.close_theirs()
        begun = shim.begin(calls.Sync())
        await asyncio.wait({begun})
        if answer.done():
            answer.result()
        begun.result()
        ends = pipes.take()
        undo.pop_all()
        return AttachSession(place, shim, end, answer, ends)
