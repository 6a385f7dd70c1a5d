"""Makes and removes directories of any depth."""

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
# Not the loop's threads: a container can make so many files that removing them takes minutes, and others would wait.
_threads: Final = ThreadPoolExecutor(2, "removal")
_threads_of_large: Final = ThreadPoolExecutor(2, "removal of large trees")
_TURN: Final = 0.2  # seconds


def make_directories(path: str) -> None:
    """Make a directory and its missing parents with mode 0755. An existing one is no error. Raises OSError.

    Unlike os.makedirs it does not recurse: a path can have more components than Python's stack has frames.
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
    """Run `remove_tree` on each, off the loop. It runs to the end even if the caller is cancelled.

    A tree that takes longer than `_TURN` moves to a second pool, where large trees take turns: a small tree never
    waits for a large one.
    """
    await asyncio.gather(*(asyncio.wrap_future(_removal(top)) for top in tops))


def _removal(top: Path) -> Future[None]:
    done: Future[None] = Future()
    done.set_running_or_notify_cancel()  # cancelling the waiter does not cancel the removal
    _threads.submit(_take_turn, top, done)
    return done


def _take_turn(top: Path, done: Future[None]) -> None:
    try:
        if not remove_tree(top, _TURN):
            try:
                _threads_of_large.submit(_take_turn, top, done)
            except RuntimeError:  # the program is exiting and waits for this thread
                remove_tree(top)
            else:
                return
    except BaseException as error:
        done.set_exception(error)
    else:
        done.set_result(None)


def remove_tree(top: Path, seconds: float = math.inf) -> bool:
    """Remove a directory and everything in it, if it exists. What cannot be removed stays, with a line in the log.

    Returns whether it finished: after `seconds` it stops, and wants to be called again.

    A container can make a tree deeper than shutil.rmtree's stack and descriptors allow, and a directory with more
    names than fit in memory. So entries are removed while the directory is read, and subdirectories are moved up beside
    their parent until it is empty: two directories are open at any depth, and no list is built.
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
    """Remove the entries that one reading of a directory returns, until `end`. Returns whether there were any."""
    found = False
    with os.scandir(top) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    _hoist(top, entry.name, end)
                else:
                    os.unlink(entry.name, dir_fd=top)
                found = True  # not if it was gone: a damaged file system may list such an entry for ever
            if time.monotonic() > end:
                break
    return found


def _hoist(top: int, name: str, end: float) -> None:
    """Move the subdirectories of `name` up to `top` and remove it; stop at `end`."""
    prefix, number = secrets.token_hex(8), 0
    descriptor = os.open(name, _DIRECTORY, dir_fd=top)
    try:
        more = True
        while more:  # until a reading returns nothing
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
