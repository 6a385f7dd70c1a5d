"""Making and removing directories of any depth."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
from pathlib import Path
from typing import Final

_log = logging.getLogger("crisp.pods")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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


def remove_tree(top: Path) -> None:
    """Remove a directory with all in it, if it is there; what cannot be removed stays, and is told in the log.

    A container can make a deeper tree than shutil.rmtree has stack and descriptors for. Here the directories in a
    directory are moved up beside it until it is empty, so that two descriptors do for any depth.
    """
    try:
        with contextlib.ExitStack() as undo:
            descriptor = os.open(top, _DIRECTORY)
            undo.callback(os.close, descriptor)
            while directories := _unlink_files(descriptor):
                for name in directories:
                    _hoist(descriptor, name)
        os.rmdir(top)
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.warning("remove %s: %s", top, error.strerror)


def _hoist(top: int, name: str) -> None:
    """Remove one of the directories in `top`, after moving the directories in it to `top`."""
    prefix = secrets.token_hex(8)
    descriptor = os.open(name, _DIRECTORY, dir_fd=top)
    try:
        for number, inner in enumerate(_unlink_files(descriptor)):
            os.rename(inner, f"{prefix}-{number}", src_dir_fd=descriptor, dst_dir_fd=top)
    finally:
        os.close(descriptor)
    os.rmdir(name, dir_fd=top)


def _unlink_files(descriptor: int) -> list[str]:
    """Remove all in a directory that is no directory itself; the names of those that are."""
    with os.scandir(descriptor) as entries:
        listing = list(entries)
    for entry in listing:
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.name, dir_fd=descriptor)
    return [entry.name for entry in listing if entry.is_dir(follow_symlinks=False)]
