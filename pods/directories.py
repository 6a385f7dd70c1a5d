"""Making and removing directories of any depth."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

_log = logging.getLogger("crisp.pods")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Of their own: a container can make so many files that removing them takes minutes, and others wait for the loop's.
_threads: Final = ThreadPoolExecutor(2, "removal")


def make_directories(path: str) -> None:
    """Make a directory and what is missing above it, of mode 0755; no error if it is there. Raises OSError.

    Without recursion, unlike os.makedirs: a path has room for more components than Python's stack for calls.
    """
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path.rstrip("/"))
    for directory in reversed(missing):
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError as error:
            if not os.path.isdir(directory):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), directory) from error


async def remove_trees(tops: Iterable[Path]) -> None:
    """`remove_tree` of each, off the loop."""
    loop = asyncio.get_running_loop()
    await asyncio.gather(*(loop.run_in_executor(_threads, remove_tree, top) for top in tops))


def remove_tree(top: Path) -> None:
    """Remove a directory with all in it, if it is there; what cannot be removed stays, and is told in the log.

    A container can make a deeper tree than shutil.rmtree has stack and descriptors for, and more names in a directory
    than there is memory to list. Here what is in a directory is removed while it is read, and the directories in it are
    moved up beside it until it is empty: two directories are open at any depth, and no list is made.
    """
    try:
        with contextlib.ExitStack() as undo:
            descriptor = os.open(top, _DIRECTORY)
            undo.callback(os.close, descriptor)
            while _remove_entries(descriptor):
                pass
        os.rmdir(top)
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.warning("remove %s: %s", top, error.strerror)


def _remove_entries(top: int) -> bool:
    """Remove what a reading of a directory shows; whether there was anything. The next reading may show more."""
    found = False
    with os.scandir(top) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    _hoist(top, entry.name)
                else:
                    os.unlink(entry.name, dir_fd=top)
                found = True
    return found


def _hoist(top: int, name: str) -> None:
    """Remove one of the directories in `top`, after moving the directories in it to `top`."""
    prefix, number = secrets.token_hex(8), 0
    descriptor = os.open(name, _DIRECTORY, dir_fd=top)
    try:
        more = True
        while more:  # a reading that shows nothing is the last
            more = False
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    more = True
                    number += 1
                    if entry.is_dir(follow_symlinks=False):
                        os.rename(entry.name, f"{prefix}-{number}", src_dir_fd=descriptor, dst_dir_fd=top)
                    else:
                        os.unlink(entry.name, dir_fd=descriptor)
    finally:
        os.close(descriptor)
    os.rmdir(name, dir_fd=top)
