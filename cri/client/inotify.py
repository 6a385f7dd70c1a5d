"""Waiting for something to happen in a directory (inotify(7))."""

from __future__ import annotations

import ctypes
import os
import select
from pathlib import Path
from typing import Self

_IN_MODIFY, _IN_MOVED_TO, _IN_CREATE, _IN_ONLYDIR = 0x2, 0x80, 0x100, 0x0100_0000


class DirectoryWatch:
    """Sees files of one directory grow, appear and be renamed into place. A context manager.

    Raises OSError if the directory cannot be watched.
    """

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = _checked(libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), directory)
        try:
            mask = _IN_MODIFY | _IN_MOVED_TO | _IN_CREATE | _IN_ONLYDIR
            _checked(libc.inotify_add_watch(self._fd, os.fsencode(directory), mask), directory)
        except OSError:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    def wait(self, timeout: float) -> None:
        """Return at the next event, or after `timeout` seconds; events that came before count."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if poll.poll(timeout * 1000):
            os.read(self._fd, 1 << 16)


def _checked(result: int, directory: Path) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(directory))
    return result
