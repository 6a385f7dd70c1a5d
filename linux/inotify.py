"""inotify(7) by ctypes, as much of it as watching a directory takes."""

from __future__ import annotations

import ctypes
import os

CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
ONLYDIR = 0x01000000

_libc = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """One inotify instance, non-blocking. Its descriptor is readable when something happened. Raises OSError."""

    def __init__(self) -> None:
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")

    def fileno(self) -> int:
        return self._fd

    def add(self, path: str, mask: int) -> int:
        """Watch `path`, and return the watch; the same one for the same inode."""
        return _checked(_libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(mask)), path)

    def remove(self, watch: int) -> None:
        """End a watch. One that the kernel ended itself (its inode is gone) is no error."""
        _libc.inotify_rm_watch(self._fd, watch)

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


def _checked(answer: int, what: str) -> int:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return answer
