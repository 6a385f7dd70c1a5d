"""Bounds what containers' own files take of the disk: writable layer and image's volumes, by project quotas.

A container's directory is a project of its own where the file system counts projects, so that its use is known at once;
a limit needs one that enforces them. The kernel then fails the container's writes, and nobody else's, with EDQUOT (XFS:
ENOSPC).
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from linux import quotas
from linux.quotas import Quotas
from pods.errors import FailedPrecondition, PodError

_log = logging.getLogger("crisp.pods")
# Ours: others count from 1, or from 1048577 as kubelet does. The numbers that a kernel takes for its own are above.
_FIRST: Final = 1 << 30
_COUNT: Final = 1 << 30
_ATTEMPTS: Final = 64


def require(root: Path, wanted_by: str) -> None:
    """Raise FailedPrecondition, with what to do, unless limits can be enforced on files in `root`."""
    with _opened(root) as directory:
        if quotas.quotas_of(directory) is not Quotas.ENFORCED:
            raise FailedPrecondition(
                f"{wanted_by}: the file system of {root} does not enforce project quotas: put it on ext4 (with the "
                "features quota and project) or XFS, and mount that with prjquota; this needs Linux 5.14"
            )


def begin(root: Path, size: int) -> None:
    """Make the directory of a container, and what is made in it, a project, which may take `size` bytes, 0 for any.

    Does nothing where the file system counts no projects, unless there is a limit. Raises PodError.
    """
    try:
        with _opened(root) as directory:
            if quotas.quotas_of(directory) is Quotas.NONE and not size:
                return
            project = _unused(directory)
            quotas.assign(directory, project)
            if size:  # after that: whoever finds the directory also finds what is to be dropped
                quotas.limit(directory, project, size)
    except OSError as error:
        raise PodError(f"limit the files in {root}: {error.strerror}") from error


def end(root: Path) -> None:
    """Drop the limit of a container's files, which are about to be removed: no number stays taken.

    Directories of other projects can then be moved up in the tree: a checkpoint, or what a container made one of.
    """
    try:
        with _opened(root) as directory:
            project = quotas.project_of(directory)
            if not _is_ours(project):
                return
            quotas.release(directory)
            if quotas.use_of(directory, project).limit:
                quotas.limit(directory, project, 0)
    except OSError as error:
        if error.errno != errno.ENOENT:
            _log.warning("could not drop the quota of %s: %s", root, error.strerror)


def use(root: Path) -> quotas.Use | None:
    """Return what a container's files take, None where that is not counted. Raises OSError."""
    with _opened(root) as directory:
        project = quotas.project_of(directory)
        return quotas.use_of(directory, project) if _is_ours(project) else None


def _is_ours(project: int) -> bool:
    """Whether it is not one that an operator gave to a directory above, whose files are counted together."""
    return _FIRST <= project < _FIRST + _COUNT


def _unused(directory: int) -> int:
    for _attempt in range(_ATTEMPTS):
        project = _FIRST + secrets.randbelow(_COUNT)
        found = quotas.use_of(directory, project)
        if not found.inodes and not found.limit:
            return project
    raise OSError(errno.EAGAIN, "no unused number of a project was found")


@contextmanager
def _opened(root: Path) -> Iterator[int]:
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield directory
    finally:
        os.close(directory)
