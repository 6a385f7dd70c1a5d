"""Makes and removes directories of any depth."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final

from linux import trees
from pods import disk_quotas

_log = logging.getLogger("crisp.pods")
_TURN: Final = 0.2  # seconds
_LAST_TURN: Final = 0.05  # seconds


def make_directories(path: str) -> None:
    """Make a directory and its missing parents with mode 0755. An existing one is no error. Raises OSError.

    Unlike os.makedirs it does not recurse: a path can have more components than Python's stack has frames.
    """
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path.rstrip("/"))
    for directory in reversed(missing):
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError as error:
            if not os.path.isdir(directory):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), directory) from error


class Garbage:
    """Removes trees that nothing refers to, in threads of its own.

    What it has not removed when it is closed stays on the disk, for whoever looks for such trees when it starts.
    """

    def __init__(self) -> None:
        # Not the loop's threads: a container can make so many files that removing them takes minutes.
        self._threads = ThreadPoolExecutor(2, "removal")
        self._threads_of_large = ThreadPoolExecutor(2, "removal of large trees")
        self._closing = threading.Event()
        self._begun: dict[Future[None], Path] = {}

    def put(self, tops: Iterable[Path]) -> list[Future[None]]:
        """Begin to run `remove_tree` on each. The futures are done when they are gone; nobody needs to wait for them.

        A tree that takes longer than `_TURN` moves to a second pool, where large trees take turns: a small tree never
        waits for a large one.
        """
        return [self._begin(top) for top in tops]

    async def remove(self, tops: Iterable[Path]) -> None:
        """Remove each, and wait for that. It goes on if the caller is cancelled."""
        await asyncio.gather(*(asyncio.wrap_future(done) for done in self.put(tops)))

    def under_way(self) -> set[Path]:
        """Return the trees whose removal has not ended."""
        return set(dict(self._begun).values())

    def close(self) -> None:
        """Finish what takes no longer than `_LAST_TURN`; then stop when each thread has removed the file it is at."""
        wait(list(self._begun), _LAST_TURN)
        self._closing.set()
        for threads in (self._threads, self._threads_of_large):
            threads.shutdown()

    def _begin(self, top: Path) -> Future[None]:
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # cancelling the waiter does not cancel the removal
        self._begun[done] = top
        done.add_done_callback(lambda gone: self._begun.pop(gone, None))
        self._submit(self._threads, top, done)
        return done

    def _submit(self, threads: ThreadPoolExecutor, top: Path, done: Future[None]) -> None:
        try:
            threads.submit(self._take_turn, top, done)
        except RuntimeError:  # closed
            done.set_result(None)

    def _take_turn(self, top: Path, done: Future[None]) -> None:
        closed = self._closing.is_set
        try:
            if closed() or remove_tree(top, _TURN, closed) or closed():
                done.set_result(None)
            else:
                self._submit(self._threads_of_large, top, done)
        except BaseException as error:
            done.set_exception(error)


def remove_tree(top: Path, seconds: float = math.inf, stopped: Callable[[], bool] = lambda: False) -> bool:
    """Remove a directory and everything in it, if it exists. What cannot be removed stays, with a line in the log.

    Returns whether it finished: it stops after `seconds` or when `stopped` returns True, and wants to be called again.
    """
    disk_quotas.end(top)
    end = time.monotonic() + seconds
    try:
        return trees.remove_tree(os.fspath(top), lambda: time.monotonic() > end or stopped())
    except OSError as error:
        _log.warning("remove %s: %s", top, error.strerror)
    return True
