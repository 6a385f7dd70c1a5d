"""Trees of any depth and any size: looked at, and removed. Changes the working directory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import islice

_REMOVED_AT_ONCE = 10_000  # names of a directory


def inodes_below(root: int) -> Iterator[os.stat_result]:
    """Each inode below the directory `root`, at any depth, and the directory's own, whatever names it has.

    Changes the working directory, meanwhile too. Raises OSError.
    """
    os.fchdir(root)
    yield os.lstat(b".")
    linked: set[int] = set()
    pending = [iter([b"."])]
    while pending:
        if (child := next(pending[-1], None)) is None:
            pending.pop()
            os.chdir(b"..")
            continue
        os.chdir(child)
        directories = []
        with os.scandir(b".") as scan:
            for entry in scan:
                there = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(there.st_mode):
                    directories.append(entry.name)
                elif there.st_nlink > 1:
                    if there.st_ino in linked:
                        continue
                    linked.add(there.st_ino)
                yield there
        pending.append(iter(directories))


def remove_tree(parent: int, name: bytes) -> None:
    """Remove the directory `name` of `parent` with all in it, at any depth and any number.

    Changes the working directory. Raises OSError.
    """
    os.fchdir(parent)
    os.chdir(name)
    names = [name]
    pending = [_emptied()]
    while pending:
        directories, whole = pending[-1]
        if directories:
            child = directories.pop()
            os.chdir(child)
            names.append(child)
            pending.append(_emptied())
        elif not whole:
            pending[-1] = _emptied()
        else:
            pending.pop()
            os.chdir(b"..")
            os.rmdir(names.pop())


def _emptied() -> tuple[list[bytes], bool]:
    """Remove what is no directory from the working directory, or from a part of it; which directories were met, and
    whether that was all. It is done in parts: there may be more names than there is memory."""
    directories: list[bytes] = []
    with os.scandir(b".") as scan:
        entries = list(islice(scan, _REMOVED_AT_ONCE))
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            directories.append(entry.name)
        else:
            os.unlink(entry.name)
    return directories, len(entries) < _REMOVED_AT_ONCE
