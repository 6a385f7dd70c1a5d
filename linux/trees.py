"""Removes directory trees of any depth and width, in little memory, in parts if need be."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable
from typing import Final

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Due = Callable[[], bool]


def remove_tree(top: str, due: Due) -> bool:
    """Remove a directory and everything in it, if it exists. Raises OSError.

    Returns whether it finished: it stops when `due` returns True, which it calls for each name, and wants to be called
    again.

    A container can make a tree deeper than shutil.rmtree's stack and descriptors allow, and a directory with more
    names than fit in memory. So entries are removed while the directory is read, and subdirectories are moved up beside
    their parent until it is empty: two directories are open at any depth, and no list is built.
    """
    try:
        descriptor = os.open(top, _DIRECTORY)
    except FileNotFoundError:
        return True
    try:
        while _remove_entries(descriptor, due):
            if _is_removed(top):
                return True
            if due():
                return False
    finally:
        os.close(descriptor)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(top)
    return True


def _is_removed(name: str, parent: int | None = None) -> bool:
    """Remove a directory if it is empty, which takes less than looking. Returns False if it is not."""
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _remove_entries(top: int, due: Due) -> bool:
    """Remove the entries that one reading of a directory returns, until `due`. Returns whether there were any."""
    found = False
    with os.scandir(top) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=top)
                elif not _is_removed(entry.name, top):
                    _hoist(top, entry.name, due)
                found = True  # not if it was gone: a damaged file system may list such an entry for ever
            if due():
                break
    return found


def _hoist(top: int, name: str, due: Due) -> None:
    """Move the subdirectories of `name` up to `top` and remove it; stop when `due`."""
    prefix, number = secrets.token_hex(8), 0
    descriptor = os.open(name, _DIRECTORY, dir_fd=top)
    try:
        more = True
        while more:  # until a reading returns nothing
            more = False
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    more = True
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.name, dir_fd=descriptor)
                    elif not _is_removed(entry.name, descriptor):
                        number += 1
                        os.rename(entry.name, f"{prefix}-{number}", src_dir_fd=descriptor, dst_dir_fd=top)
                    if due():
                        return
            if more and _is_removed(name, top):
                return
    finally:
        os.close(descriptor)
    os.rmdir(name, dir_fd=top)
