"""The pipes to a process in a container."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from typing import Any, Final

from runtime.client import close_all

PIPE_BYTES: Final = 256 << 10


class Pipes:
    """The pipes of a session. Our ends are non-blocking; the process's ends of unwanted streams are /dev/null."""

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
        with contextlib.suppress(OSError):  # beyond the user's limit for pipes: only slower
            fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    @property
    def ours(self) -> tuple[int, int, int]:
        stdin, stdout, stderr = self._ours
        return stdin, stdout, stderr

    @property
    def theirs(self) -> tuple[int, int, int]:
        stdin, stdout, stderr = self._theirs
        return stdin, stdout, stderr

    def wanted(self) -> dict[str, int]:
        """Return the process's ends of the requested streams, by name."""
        names = ("stdin", "stdout", "stderr")
        return {name: fd for name, fd, ours in zip(names, self._theirs, self._ours, strict=True) if ours >= 0}

    def take(self) -> tuple[int, int, int]:
        """Return our ends, which the caller owns from now on."""
        ends, self._ours = self.ours, []
        return ends

    def close_theirs(self) -> None:
        close_all(self._theirs)
        self._theirs = []

    def close(self) -> None:
        self.close_theirs()
        close_all(fd for fd in self._ours if fd >= 0)
        self._ours = []


async def readable(fd: int, or_done: asyncio.Future[Any] | None = None, timeout: float | None = None) -> bool:
    """Wait until `fd` is readable, the future is done or `timeout` seconds passed. Returns whether it is readable."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def on_readable() -> None:
        loop.remove_reader(fd)
        ready.set_result(None)

    loop.add_reader(fd, on_readable)
    try:
        awaited = {ready} if or_done is None or or_done.done() else {ready, or_done}
        await asyncio.wait(awaited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        return ready.done()
    finally:
        if not ready.done():
            loop.remove_reader(fd)


def closed(fd: int) -> int:
    if fd >= 0:
        os.close(fd)
    return -1
