"""Resolving a path inside a directory as if that were `/`, where openat2(2) does not do.

That is on kernels without it (Linux 5.6 brought it), and where what is missing on the way is to be made. Each component
is opened by its name in the directory that is open already, never following a link: links are read, and resolved here.
Who renames things meanwhile can make this fail or end elsewhere inside, not outside.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_MOST_LINKS: Final = 40  # as the kernel
_STEP: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def open_inside(
    root: int,
    path: str,
    flags: int,
    *,
    follow: bool = True,
    make: Callable[[str, int, bool], None] | None = None,
) -> int:
    """Open `path` inside the directory open at `root`. `..` at the root stays there. Raises OSError.

    Without `follow` a symbolic link anywhere on the way is ELOOP, as with RESOLVE_NO_SYMLINKS. `make` is called for
    what is missing, with its name, the directory that it is missing in, and whether it is the last of the path: also
    where a link leads to nothing.
    """
    directories = [os.dup(root)]
    todo = _components(path)
    links = 0
    try:
        while todo:
            name = todo.pop()
            if name == ".":
                continue
            if name == "..":
                if len(directories) > 1:
                    os.close(directories.pop())
                continue
            step = _step(name, directories[-1], make, last=not todo)
            mode = os.fstat(step).st_mode
            if stat.S_ISLNK(mode):
                links += 1
                try:
                    if not follow or links > _MOST_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                    target = os.readlink("", dir_fd=step)
                finally:
                    os.close(step)
                if target.startswith("/"):
                    _close(directories[1:])
                    del directories[1:]
                todo += _components(target)
            elif not todo and not stat.S_ISDIR(mode):
                try:
                    return _reopen(name, directories[-1], step, flags)
                finally:
                    os.close(step)
            elif not stat.S_ISDIR(mode):
                os.close(step)
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            else:
                directories.append(step)
        return os.open(".", flags | os.O_CLOEXEC, dir_fd=directories[-1])
    finally:
        _close(directories)


def _step(name: str, directory: int, make: Callable[[str, int, bool], None] | None, *, last: bool) -> int:
    try:
        return os.open(name, _STEP, dir_fd=directory)
    except FileNotFoundError:
        if make is None:
            raise
    with contextlib.suppress(FileExistsError):  # somebody else was quicker
        make(name, directory, last)
    return os.open(name, _STEP, dir_fd=directory)


def _components(path: str) -> list[str]:
    """The last one first. A slash at the end wants a directory, as `.` does."""
    return [part for part in reversed((path + "." if path.endswith("/") else path).split("/")) if part]


def _reopen(name: str, directory: int, seen: int, flags: int) -> int:
    """Open a file that is no directory and was seen to be no link."""
    found = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    now, before = os.fstat(found), os.fstat(seen)
    if (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino):
        os.close(found)
        raise OSError(errno.EAGAIN, "replaced while it was opened", name)
    return found


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
