"""ExecSync: run a command in a container and collect its output."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pods.errors import DeadlineExceeded
from pods.model import ExecResult
from pods.streams.command import Command, explained
from runtime.client import ShimClient

if TYPE_CHECKING:
    from pods.life.shims import Shims
    from pods.state.memory import State

MAX_OUTPUT: Final = 16 << 20  # bytes of each stream; what comes after is read and dropped
_CHUNK: Final = 64 << 10
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


class _Collector:
    """Reads one pipe on the loop into memory, up to MAX_OUTPUT, and as far as the budget goes."""

    def __init__(self, budget: _Budget = _budget) -> None:
        self._budget = budget
        self._taken = 0
        self._read, self.write = os.pipe()
        os.set_blocking(self._read, False)
        self._output = bytearray()
        self._cut = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._read, self._ready)

    def _ready(self) -> None:
        self._take()

    def _take(self) -> bool:
        """Read a chunk. False when there is none now, or none any more."""
        if self._read < 0:
            return False
        try:
            data = os.read(self._read, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self.close()
            return False
        if not self._cut:
            self._keep(data[: MAX_OUTPUT - len(self._output)])
        return True

    def _keep(self, data: bytes) -> None:
        beyond = max(0, len(self._output) + len(data) - max(_OWN, len(self._output)))
        granted = self._budget.take(beyond)
        self._cut = granted < beyond  # for good: nobody wants the rest without the middle
        self._taken += granted
        self._output += data[: len(data) - beyond + granted]

    def finish(self) -> bytes:
        """All that the ended command wrote; a child of its that holds the pipe open is not waited for."""
        for _chunk in range(MAX_OUTPUT // _CHUNK):
            if not self._take():
                break
        self.close()
        output = bytes(self._output)
        self._forget()
        return output

    def _forget(self) -> None:
        self._output = bytearray()
        self._budget.give_back(self._taken)
        self._taken = 0

    def close(self) -> None:
        if self._read >= 0:
            self._loop.remove_reader(self._read)
            os.close(self._read)
            self._read = -1
        self.close_write()

    def end(self) -> None:
        """Close, whoever gives up, and forget what was read."""
        self.close()
        self._forget()

    def close_write(self) -> None:
        if self.write >= 0:
            os.close(self.write)
            self.write = -1


async def exec_sync(
    state: State, shims: Shims, container_id: str, argv: Sequence[str], timeout: float
) -> ExecResult:
    """Run `argv`; `timeout` in seconds, 0 for none. Raises NotFound, FailedPrecondition, DeadlineExceeded,
    PodError.

    When the time is over, or the caller gives up, the command and all that it started are killed.
    """
    container = state.running_container(container_id)
    with explained("exec in", container.id), contextlib.ExitStack() as undo:
        shim = shims.of(container.sandbox_id)
        stdout = _Collector()
        undo.callback(stdout.end)
        stderr = _Collector()
        undo.callback(stderr.end)
        code = await _run(shim, container.id, argv, timeout, stdout, stderr)
        return ExecResult(stdout=stdout.finish(), stderr=stderr.finish(), exit_code=code)


async def _run(
    shim: ShimClient, container_id: str, argv: Sequence[str], timeout: float, stdout: _Collector, stderr: _Collector
) -> int:
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        command = Command(shim, container_id, argv, (null, stdout.write, stderr.write))
    finally:
        os.close(null)
    stdout.close_write()
    stderr.close_write()
    try:
        if not await command.ended(timeout if timeout > 0 else None):
            raise DeadlineExceeded(f"exec in container {container_id}: {argv[0]!r} did not end in {timeout:g} s")
    except (asyncio.CancelledError, DeadlineExceeded):
        command.kill()
        raise
    return command.exit_code()
