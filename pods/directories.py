"""Making and removing directories of any depth."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import secrets
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

_log = logging.getLogger("crisp.pods")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Of their own: a container can make so many files that removing them takes minutes, and others wait for the loop's.
_threads: Final = ThreadPoolExecutor(2, "removal")
_threads_of_large: Final = ThreadPoolExecutor(2, "removal of large trees")
_TURN: Final = 0.2  # seconds


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
    """`remove_tree` of each, off the loop; to its end, though the caller is cancelled.

    What takes longer than a turn has the rest of its turns elsewhere, by turns with others of its kind: however many
    files some trees have, a small one is not kept waiting for them.
    """
    await asyncio.gather(*(asyncio.wrap_future(_removal(top)) for top in tops))


def _removal(top: Path) -> Future[None]:
    done: Future[None] = Future()
    done.set_running_or_notify_cancel()  # who waits may be cancelled, the removal may not
    _threads.submit(_take_turn, top, done)
    return done


def _take_turn(top: Path, done: Future[None]) -> None:
    try:
        if not remove_tree(top, _TURN):
            try:
                _threads_of_large.submit(_take_turn, top, done)
            except RuntimeError:  # the program ends, and waits for this thread
                remove_tree(top)
            else:
                return
    except BaseException as error:
        done.set_exception(error)
    else:
        done.set_result(None)


def remove_tree(top: Path, seconds: float = math.inf) -> bool:
    """Remove a directory with all in it, if it is there; what cannot be removed stays, and is told in the log.

    Returns whether that was all there is to do: after `seconds` it stops, to be called again.

    A container can make a deeper tree than shutil.rmtree has stack and descriptors for, and more names in a directory
    than there is memory to list. Here what is in a directory is removed while it is read, and the directories in it are
    moved up beside it until it is empty: two directories are open at any depth, and no list is made.
    """
    end = time.monotonic() + seconds
    try:
        with contextlib.ExitStack() as undo:
            descriptor = os.open(top, _DIRECTORY)
            undo.callback(os.close, descriptor)
            while _remove_entries(descriptor, end):
                if time.monotonic() > end:
                    return False
        os.rmdir(top)
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.warning("remove %s: %s", top, error.strerror)
    return True


def _remove_entries(top: int, end: float) -> bool:
    """Remove what a reading of a directory shows, until `end`; whether there was anything. The next may show more."""
    found = False
    with os.scandir(top) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    _hoist(top, entry.name, end)
                else:
                    os.unlink(entry.name, dir_fd=top)
                found = True  # a damaged file system may show what cannot be removed, for ever
            if time.monotonic() > end:
                break
    return found


def _hoist(top: int, name: str, end: float) -> None:
    """Remove one of the directories in `top`, after moving the directories in it to `top`; until `end`."""
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
                    if time.monotonic() > end:
                        return
    finally:
        os.close(descriptor)
    os.rmdir(name, dir_fd=top)
