"""Counts the disk use of directory trees, slowly: it takes at most a quarter of one CPU."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

_BATCH: Final = 1000  # entries counted between two pauses
_PAUSE: Final = 3  # times as long as the batch took: at most a quarter of one CPU
_MOST_LINKED: Final = 1 << 17  # hard-linked files to remember; a container can make any number
_DEEPEST: Final = 256  # nested directories: each takes a descriptor while it is read
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Tally:
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
