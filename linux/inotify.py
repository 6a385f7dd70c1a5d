"""Wraps as much of inotify(7) as watching a directory needs."""

from __future__ import annotations

import ctypes
import os
import select

from linux.syscalls import check, libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

MODIFY = 0x2
CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
ONLYDIR = 0x01000000


class Inotify:
    """One non-blocking inotify instance. Its descriptor is readable when there are events. Raises OSError."""

    def __init__(self) -> None:
        self._fd = check(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._fd

    def add(self, path: str, mask: int) -> int:
        """Watch `path` and return the watch descriptor; the same inode has the same one."""
        return check(libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(mask)), path)

    def remove(self, watch: int) -> None:
        """End a watch. It is no error if the kernel has ended it already because the inode is gone."""
        libc.inotify_rm_watch(self._fd, watch)

    def wait(self, timeout: float) -> None:
        """Wait for an event, at most `timeout` seconds, and discard it. Earlier events count too."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if poll.poll(timeout * 1000):
            self.drain()

    def drain(self) -> bool:
        """Discard all pending events and return whether there were any."""
        taken = False
        try:
            while os.read(self._fd, 65536):
                taken = True
        except BlockingIOError:
            pass
        return taken

    def close(self) -> None:
        os.close(self._fd)
