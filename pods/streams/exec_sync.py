"""ExecSync: runs a command in a container and collects its output."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pods.errors import DeadlineExceeded
from pods.model import ExecResult
from pods.streams.command import Command, explained
from pods.streams.pipes import Pipes

if TYPE_CHECKING:
    from pods.life.shims import Shims
    from pods.state.memory import State

# Bytes of each stream; the rest is read and dropped. kubelet and crictl accept messages of 16 MiB, minus what surrounds
# the output: with more the whole answer would become an error on their side.
MAX_OUTPUT: Final = (16 << 20) - 64
_KILLED_SECONDS: Final = 2.0  # for a killed command to be gone: the kernel may hold it in a system call
_PIECE: Final = 64 << 10
_OWN: Final = 256 << 10  # bytes that every stream may hold; probes need less
_TOGETHER: Final = 128 << 20  # bytes that all streams together may hold beyond that


class _Budget:
    """Bounds the memory for the output of all commands: pod authors decide how many run and how much they print."""

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, wanted: int) -> int:
        """Grant as many of the wanted bytes as are left."""
        granted = min(wanted, self._left)
        self._left -= granted
        return granted

    def give_back(self, size: int) -> None:
        self._left += size


_budget: Final = _Budget(_TOGETHER)


class Output:
    """The collected output of a stream, limited by MAX_OUTPUT and the budget."""

    def __init__(self, budget: _Budget = _budget) -> None:
        self._budget = budget
        self._taken = 0
        self._bytes = bytearray()
        self._cut = False

    def add(self, data: bytes) -> None:
        """Append data, or drop what exceeds the limits, and everything after it."""
        if self._cut:
            return
        data = data[: MAX_OUTPUT - len(self._bytes)]
        beyond = max(0, len(self._bytes) + len(data) - max(_OWN, len(self._bytes)))
        granted = self._budget.take(beyond)
        self._cut = granted < beyond  # for good: output with a gap is of no use
        self._taken += granted
        self._bytes += data[: len(data) - beyond + granted]

    def take(self) -> bytes:
        """Return the output and release it here."""
        output = bytes(self._bytes)
        self.forget()
        return output

    def forget(self) -> None:
        """Give the memory back to the budget."""
        self._bytes = bytearray()
        self._budget.give_back(self._taken)
        self._taken = 0


class _Reading:
    """Reads a stream on the event loop from now on, so that a command never waits for us."""

    def __init__(self, fd: int, output: Output) -> None:
        self._fd = fd
        self._output = output
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._take)

    def _take(self) -> bool:
        """Read once. Returns False if there is nothing now, or the stream has ended."""
        try:
            data = os.read(self._fd, _PIECE)
        except BlockingIOError:
            return False
        if not data:
            self.end()
            return False
        self._output.add(data)
        return True

    def finish(self) -> None:
        """Read the remaining output of the ended command. Does not wait for a child that keeps the pipe open."""
        for _piece in range(MAX_OUTPUT // _PIECE):
            if not self._take():
                break

    def end(self) -> None:
        self._loop.remove_reader(self._fd)


async def exec_sync(
    state: State, shims: Shims, container_id: str, argv: Sequence[str], timeout: float
) -> ExecResult:
    """Run `argv` and return its output. `timeout` is in seconds, 0 for none.

    On timeout, or if the caller gives up, the command and everything that it started are killed. Raises
    InvalidArgument, FailedPrecondition, DeadlineExceeded, PodError.
    """
    container = state.running_container(container_id)
    with contextlib.ExitStack() as undo:
        undo.enter_context(explained("exec in", container.id, lambda: shims.has(container.sandbox_id)))
        pipes = Pipes(stdin=False, stdout=True, stderr=True)
        undo.callback(pipes.close)
        command = Command(shims.of(container.sandbox_id), container.id, argv, pipes.theirs)
        undo.callback(command.kill)
        pipes.close_theirs()
        outputs = Output(), Output()
        readings = []
        for fd, output in zip(pipes.ours[1:], outputs, strict=True):
            undo.callback(output.forget)
            readings.append(_Reading(fd, output))
            undo.callback(readings[-1].end)
        if not await command.ended(timeout if timeout > 0 else None):
            command.kill()
            await command.ended(_KILLED_SECONDS)  # who looks then finds none of its processes
            raise DeadlineExceeded(
                f"exec in container {container.id}: {argv[0]!r} did not end within {timeout:g} s and was killed"
            )
        code = command.exit_code()
        for reading in readings:
            reading.finish()
        stdout, stderr = (output.take() for output in outputs)
        return ExecResult(stdout=stdout, stderr=stderr, exit_code=code)
