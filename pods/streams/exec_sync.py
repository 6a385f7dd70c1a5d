"""ExecSync: run a command in a container and collect its output."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pods.errors import DeadlineExceeded
from pods.model import ExecResult
from pods.streams.command import explained
from pods.streams.sessions import start_exec

if TYPE_CHECKING:
    from pods.life.shims import Shims
    from pods.state.memory import State

# Bytes of each stream; what comes after is read and dropped. kubelet and crictl take as many in one message, less room
# for what is around them: more would turn the whole answer into an error at their end.
MAX_OUTPUT: Final = (16 << 20) - 64
_PIECE: Final = 64 << 10
_OWN: Final = 256 << 10  # bytes that every stream may hold: probes say less
_TOGETHER: Final = 128 << 20  # bytes that all streams may hold beyond those


class _Budget:
    """What all commands' output takes of the daemon's memory: pods' authors decide how many there are, and how loud."""

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, wanted: int) -> int:
        """So many of the bytes that are wanted as there are left."""
        granted = min(wanted, self._left)
        self._left -= granted
        return granted

    def give_back(self, size: int) -> None:
        self._left += size


_budget: Final = _Budget(_TOGETHER)


class Output:
    """What a stream said, up to MAX_OUTPUT, and as far as the budget goes."""

    def __init__(self, budget: _Budget = _budget) -> None:
        self._budget = budget
        self._taken = 0
        self._bytes = bytearray()
        self._cut = False

    def add(self, data: bytes) -> None:
        """Keep the next piece, or drop what there is no room for, and all that follows."""
        if self._cut:
            return
        data = data[: MAX_OUTPUT - len(self._bytes)]
        beyond = max(0, len(self._bytes) + len(data) - max(_OWN, len(self._bytes)))
        granted = self._budget.take(beyond)
        self._cut = granted < beyond  # for good: nobody wants the rest without the middle
        self._taken += granted
        self._bytes += data[: len(data) - beyond + granted]

    def take(self) -> bytes:
        """All that was kept, which the caller holds from now on."""
        output = bytes(self._bytes)
        self.forget()
        return output

    def forget(self) -> None:
        """Give the room back, whoever gives up."""
        self._bytes = bytearray()
        self._budget.give_back(self._taken)
        self._taken = 0


class _Reading:
    """Takes in a stream on the loop, from now on: a command that says much is not to wait for us."""

    def __init__(self, fd: int, output: Output) -> None:
        self._fd = fd
        self._output = output
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._take)

    def _take(self) -> bool:
        """Read a piece. False when there is none now, or none any more."""
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
        """Take what the ended command left; a child of its that holds the pipe open is not waited for."""
        for _piece in range(MAX_OUTPUT // _PIECE):
            if not self._take():
                break

    def end(self) -> None:
        self._loop.remove_reader(self._fd)


async def exec_sync(
    state: State, shims: Shims, container_id: str, argv: Sequence[str], timeout: float
) -> ExecResult:
    """Run `argv`; `timeout` in seconds, 0 for none. Raises InvalidArgument, FailedPrecondition, DeadlineExceeded,
    PodError.

    When the time is over, or the caller gives up, the command and all that it started are killed.
    """
    container = state.running_container(container_id)
    with contextlib.ExitStack() as undo:
        session = start_exec(shims, container, argv, (False, True, True))
        undo.callback(session.abandon)
        outputs = Output(), Output()
        readings = []
        for fd, output in zip((session.stdout, session.stderr), outputs, strict=True):
            undo.callback(output.forget)
            readings.append(_Reading(fd, output))
            undo.callback(readings[-1].end)
        if not await session.command.ended(timeout if timeout > 0 else None):
            raise DeadlineExceeded(f"exec in container {container.id}: {argv[0]!r} did not end in {timeout:g} s")
        with explained("exec in", container.id):
            code = session.command.exit_code()
        for reading in readings:
            reading.finish()
        stdout, stderr = (output.take() for output in outputs)
        return ExecResult(stdout=stdout, stderr=stderr, exit_code=code)
