"""inotify(7), as much of it as watching a directory takes."""

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
    """One inotify instance, non-blocking. Its descriptor is readable when something happened. Raises OSError."""

    def __init__(self) -> None:
        self._fd = check(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._fd

    def add(self, path: str, mask: int) -> int:
        """Watch `path`, and return the watch; the same one for the same inode."""
        return check(libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(mask)), path)

    def remove(self, watch: int) -> None:
        """End a watch. One that the kernel ended itself (its inode is gone) is no error."""
        libc.inotify_rm_watch(self._fd, watch)

    def wait(self, timeout: float) -> None:
        """Return when there is an event, or after `timeout` seconds; those that came before count. Takes them."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if poll.poll(timeout * 1000):
            self.drain()

    def drain(self) -> bool:
        """Take every pending event, whatever it says; whether there was one."""
        taken = False
        try:
            while os.read(self._fd, 65536):
                taken = True
        except BlockingIOError:
            pass
        return taken

    def close(self) -> None:
        os.close(self._fd)
