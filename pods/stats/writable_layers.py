"""Counts the disk use of containers' writable layers, in a thread, rarely and slowly."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FRESH: Final = 10.0  # seconds until a count is due again
_REST: Final = 20  # but at least this many times as long as counting took
_PATIENCE: Final = 0.25  # seconds that a caller waits for due counts; then it gets the earlier ones
_BATCH: Final = 1000  # entries counted between two pauses
_PAUSE: Final = 3  # times as long as the batch took: at most a quarter of one CPU
_MOST_LINKED: Final = 1 << 17  # hard-linked files to remember; a container can make any number
_DEEPEST: Final = 256  # nested directories: each takes a descriptor while it is read
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class DiskUse:
    """`counted_at` is in nanoseconds since the epoch."""

    bytes: int
    inodes: int
    counted_at: int


@dataclass(slots=True)
class _Known:
    use: DiskUse | None = None
    due: float = 0.0
    counting: asyncio.Future[None] | None = None  # the thread sets it to None

    def job(self) -> asyncio.Future[None] | None:
        """The running count, if any. It may end before its future is stored."""
        job = self.counting
        return None if job is None or job.done() else job


class WritableLayers:
    """Disk use by container id. `close` ends the thread."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="disk")
        self._closing = False

    def close(self) -> None:
        """End the thread, even in the middle of a count."""
        self._closing = True
        self._thread.shutdown(cancel_futures=True)

    async def usage(
        self, names: Sequence[str], directories: Callable[[str], Sequence[Path]]
    ) -> dict[str, DiskUse]:
        """Return the use of each container's `directories`; without those whose first count takes long."""
        wanted = [self._known.setdefault(name, _Known()) for name in names]
        now = time.monotonic()
        due = [
            (known, directories(name))
            for name, known in zip(names, wanted, strict=True)
            if known.job() is None and now >= known.due
        ]
        if due:  # one job for all: of hundreds of containers, most take less time than the handing over of a job
            job = asyncio.get_running_loop().run_in_executor(self._thread, self._count_all, due)
            for known, _ in due:
                known.counting = job
        if under_way := {running for known in wanted if (running := known.job()) is not None}:
            await asyncio.wait(under_way, timeout=_PATIENCE)
        found = {name: self._known[name].use for name in names if name in self._known}
        return {name: use for name, use in found.items() if use is not None}

    def keep(self, names: Iterable[str]) -> None:
        """Drop the counts of all other containers."""
        wanted = set(names)
        self._known = {name: known for name, known in self._known.items() if name in wanted}

    # -- in the thread ------------------------------------------------------------------------------------------------

    def _count_all(self, due: Sequence[tuple[_Known, Sequence[Path]]]) -> None:
        for known, paths in due:
            try:
                self._count(known, paths)
            finally:
                known.counting = None

    def _count(self, known: _Known, paths: Sequence[Path]) -> None:
        begun = time.monotonic()
        tally = _Tally(lambda: self._closing)
        for path in paths:
            tally.add(path)
        if not self._closing:
            known.use = DiskUse(round(tally.bytes), round(tally.inodes), time.time_ns())
        ended = time.monotonic()
        known.due = ended + max(_FRESH, _REST * (ended - begun))


class _Tally:
    """Sums up trees that may change meanwhile. Links are not followed; files that vanish are not counted."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self.bytes = 0.0
        self.inodes = 0.0
        self._stopped = stopped
        self._linked: set[int] = set()
        self._left = _BATCH
        self._batch_begun = time.monotonic()

    def add(self, path: str | Path, parent: int | None = None, depth: int = 0) -> None:
        """Add a directory and its content, down to a depth beyond any reasonable program's."""
        with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
            directory = os.open(path, _DIRECTORY, dir_fd=parent)
            opened.callback(os.close, directory)
            self._count(os.fstat(directory))
            for entry in opened.enter_context(os.scandir(directory)):
                if self._stopped():
                    return
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if not stat.S_ISDIR(status.st_mode):
                        self._count(status)
                    elif depth < _DEEPEST:
                        self.add(entry.name, directory, depth + 1)

    def _count(self, status: os.stat_result) -> None:
        self._left -= 1
        if not self._left:
            self._rest()
        names = 1
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            if status.st_ino in self._linked:
                return
            if len(self._linked) < _MOST_LINKED:
                self._linked.add(status.st_ino)
            else:
                names = status.st_nlink  # each name counts as its share: right if all names are in the tree
        self.bytes += status.st_blocks * 512 / names
        self.inodes += 1 / names

    def _rest(self) -> None:
        time.sleep(_PAUSE * (time.monotonic() - self._batch_begun))
        self._left = _BATCH
        self._batch_begun = time.monotonic()
