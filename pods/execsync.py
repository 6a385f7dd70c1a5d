"""ExecSync: run a command in a container and collect its output."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pods.command import Command, explained, running_container
from pods.errors import DeadlineExceeded
from pods.execve_limits import check_arguments
from pods.model import ExecResult
from runtime.client import ShimClient

if TYPE_CHECKING:
    from pods.shims import Shims
    from pods.state import State

MAX_OUTPUT: Final = 16 << 20  # bytes of each stream; what comes after is read and dropped
_CHUNK: Final = 64 << 10


class _Collector:
    """Reads one pipe on the loop into memory, up to MAX_OUTPUT."""

    def __init__(self) -> None:
        self._read, self.write = os.pipe()
        os.set_blocking(self._read, False)
        self._parts: list[bytes] = []
        self._size = 0
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
        room = MAX_OUTPUT - self._size
        if room > 0:
            self._parts.append(data[:room])
            self._size += min(len(data), room)
        return True

    def finish(self) -> bytes:
        """All that the ended command wrote; a child of its that holds the pipe open is not waited for."""
        for _chunk in range(MAX_OUTPUT // _CHUNK):
            if not self._take():
                break
        self.close()
        return b"".join(self._parts)

    def close(self) -> None:
        if self._read >= 0:
            self._loop.remove_reader(self._read)
            os.close(self._read)
            self._read = -1
        self.close_write()

    def close_write(self) -> None:
        if self.write >= 0:
            os.close(self.write)
            self.write = -1


async def exec_sync(
    state: State, shims: Shims, container_id: str, argv: Sequence[str], timeout: float
) -> ExecResult:
    """Run `argv`; `timeout` in seconds, 0 for none. Raises InvalidArgument, FailedPrecondition, DeadlineExceeded,
    PodError.

    When the time is over, or the caller gives up, the command and all that it started are killed.
    """
    container = running_container(state, container_id)
    check_arguments("cmd", argv)
    with explained("exec in", container.id), contextlib.ExitStack() as undo:
        shim = shims.of(container.sandbox_id)
        stdout = _Collector()
        undo.callback(stdout.close)
        stderr = _Collector()
        undo.callback(stderr.close)
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
