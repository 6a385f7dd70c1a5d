"""Visits and removes trees of any depth and size. Changes the working directory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import islice

_REMOVED_AT_ONCE = 10_000  # names of a directory per reading


def inodes_below(root: int) -> Iterator[os.stat_result]:
    """Yield each inode below the directory `root`, and its own, once, whatever names it has.

    Changes the working directory, also in between. Raises OSError.
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
    """Remove the directory `name` of `parent` with its content, of any depth and size.

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
    """Remove files from (a part of) the working directory. Returns its directories, and whether that was everything.

    It works in parts because the names may not fit in memory.
    """
    directories: list[bytes] = []
    with os.scandir(b".") as scan:
        entries = list(islice(scan, _REMOVED_AT_ONCE))
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            directories.append(entry.name)
        else:
            os.unlink(entry.name)
    return directories, len(entries) < _REMOVED_AT_ONCE
