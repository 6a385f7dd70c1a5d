"""Resolves a path inside a directory as if that directory were `/`, in user space, where openat2(2) cannot.

Needed on kernels without openat2 (before Linux 5.6), and where missing parts of the path are to be created. Each
component is opened by name in the directory opened before it and without following links; links are read and resolved
here. A process that renames things meanwhile can make this fail or end elsewhere inside the root, never outside it.
"""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

_MOST_LINKS: Final = 40  # the kernel's limit
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

    Without `follow`, a symbolic link anywhere on the way is ELOOP, as with RESOLVE_NO_SYMLINKS. `make` is called for
    each missing component, also for the missing target of a link. Its arguments are the component's name, the directory
    it is missing in, and whether it is the last component of the path.
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
    try:  # noqa: SIM105 (importing contextlib costs a start of crisp-oci milliseconds)
        make(name, directory, last)
    except FileExistsError:
        pass  # another process made it first
    return os.open(name, _STEP, dir_fd=directory)


def _components(path: str) -> list[str]:
    """Split the path, last component first. A trailing slash demands a directory, as `.` does."""
    return [part for part in reversed((path + "." if path.endswith("/") else path).split("/")) if part]


def _reopen(name: str, directory: int, seen: int, flags: int) -> int:
    """Open a file that is neither a directory nor a link, and check that it is still the one that was seen."""
    found = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    now, before = os.fstat(found), os.fstat(seen)
    if (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino):
        os.close(found)
        raise OSError(errno.EAGAIN, "replaced while it was opened", name)
    return found


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
