"""Measures the disk use of containers' own files, in a thread: by their quota, else by counting, rarely and slowly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pods import disk_quotas
from pods.stats.tally import Tally

_FRESH: Final = 10.0  # seconds until a count is due again
_REST: Final = 20  # but at least this many times as long as counting took
_OWN: Final = ("upper", "volumes")
_PATIENCE: Final = 0.25  # seconds that a caller waits for due counts; then it gets the earlier ones


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

    async def usage(self, names: Sequence[str], root: Callable[[str], Path]) -> dict[str, DiskUse]:
        """Return the use of each container, whose files are in `root`; without those whose first count takes long."""
        wanted = [self._known.setdefault(name, _Known()) for name in names]
        now = time.monotonic()
        due = [
            (known, root(name))
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

    def _count_all(self, due: Sequence[tuple[_Known, Path]]) -> None:
        for known, root in due:
            try:
                known.use = _counted_by_quota(root)
                if known.use is None:
                    self._count(known, root)
            finally:
                known.counting = None

    def _count(self, known: _Known, root: Path) -> None:
        begun = time.monotonic()
        tally = Tally(lambda: self._closing)
        for name in _OWN:
            tally.add(root / name)
        if not self._closing:
            known.use = DiskUse(round(tally.bytes), round(tally.inodes), time.time_ns())
        ended = time.monotonic()
        known.due = ended + max(_FRESH, _REST * (ended - begun))


def _counted_by_quota(root: Path) -> DiskUse | None:
    try:
        use = disk_quotas.use(root)
    except OSError:
        return None
    return None if use is None else DiskUse(use.bytes, use.inodes, time.time_ns())
