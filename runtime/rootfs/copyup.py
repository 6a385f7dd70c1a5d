"""Copies a directory of the rootfs into the file system that will cover it (mount option `tmpcopyup`).

Works on descriptors and never follows links, because the directory comes from the image, which is not trusted.
"""

from __future__ import annotations

import os
import stat

_AT_ONCE = 1 << 20
_NO_FOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC


def copy_tree(source: int, target: int, *, with_mode: bool) -> None:
    """Copy the contents of the directory open (O_PATH) at `source` to the one at `target`, with owners and modes.

    `with_mode`: also the directory's own mode and owner. Sockets are skipped. Raises OSError.
    """
    pending = [(_directory(".", source), _directory(".", target), with_mode)]
    try:
        while pending:
            inside, outside, own = pending.pop()
            try:
                found = [name for name in os.listdir(inside) if _copy_entry(name, inside, outside)]
                pending += [(_directory(name, inside), _directory(name, outside), True) for name in found]
                if own:  # last, because the mode may forbid the steps above
                    _copy_attributes(os.fstat(inside), ".", outside)
            finally:
                os.close(inside)
                os.close(outside)
    finally:
        for inside, outside, _own in pending:
            os.close(inside)
            os.close(outside)


def _directory(name: str, parent: int) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | _NO_FOLLOW, dir_fd=parent)


def _copy_entry(name: str, source: int, target: int) -> bool:
    """Copy one entry, a directory without its contents. Return whether it is a directory."""
    status = os.stat(name, dir_fd=source, follow_symlinks=False)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFSOCK:
        return False
    if kind == stat.S_IFDIR:
        os.mkdir(name, 0o700, dir_fd=target)
        return True
    if kind == stat.S_IFLNK:
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
    elif kind == stat.S_IFREG:
        _copy_content(name, source, target)
    else:
        os.mknod(name, kind | 0o600, status.st_rdev, dir_fd=target)
    _copy_attributes(status, name, target)
    return False


def _copy_content(name: str, source: int, target: int) -> None:
    reader = os.open(name, os.O_RDONLY | _NO_FOLLOW, dir_fd=source)
    try:
        writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o600, dir_fd=target)
        try:
            while os.sendfile(writer, reader, None, _AT_ONCE):
                pass
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _copy_attributes(status: os.stat_result, name: str, directory: int) -> None:
    os.chown(name, status.st_uid, status.st_gid, dir_fd=directory, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=directory)
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)
