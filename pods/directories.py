"""Making directories of any depth."""

from __future__ import annotations

import errno
import os


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
