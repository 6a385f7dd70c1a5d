"""What overlayfs reads in a lower layer: whiteouts, opaque directories, and the attributes of directories that several
layers share."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Sequence

OPAQUE_XATTR = b"trusted.overlay.opaque"
RESERVED_XATTRS = (b"trusted.overlay.", b"user.overlay.")
PLAIN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def is_whiteout(there: os.stat_result) -> bool:
    return stat.S_ISCHR(there.st_mode) and there.st_rdev == 0


def make_whiteout(parent: int, name: bytes) -> None:
    os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent)


def mark_opaque(directory: int) -> None:
    """Hide what the layers below have in this directory."""
    os.setxattr(directory, OPAQUE_XATTR, b"y")


def is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, OPAQUE_XATTR) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise


def adopt_directories(layer: int, lowers: Sequence[int], paths: Iterable[bytes]) -> None:
    """Give directories that no entry of the archive described what the layers below have: owner, mode, xattrs, time.

    Without it an archive with `tmp/x` but no `tmp/` would turn the image's /tmp into a 0755 directory. `layer` and
    `lowers` (topmost first) are descriptors of layer roots. Raises OSError.
    """
    for path in paths:
        model = _visible_directory(lowers, path)
        if model is None:
            continue
        try:
            target = _open_plain(layer, path)
            try:
                _copy_attributes(model, target)
            finally:
                os.close(target)
        finally:
            os.close(model)


def _visible_directory(lowers: Sequence[int], path: bytes) -> int | None:
    """A descriptor of the directory an overlay of `lowers` takes attributes of `path` from; None if it has none."""
    for lower in lowers:
        descriptor = os.dup(lower)
        for name in path.split(b"/") if path else ():
            opaque = is_opaque(descriptor)
            try:
                child = os.open(name, PLAIN_DIRECTORY, dir_fd=descriptor)
            except FileNotFoundError:
                os.close(descriptor)
                if opaque:
                    return None
                break
            except OSError as error:
                os.close(descriptor)
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    return None
                raise
            os.close(descriptor)
            descriptor = child
        else:
            return descriptor
    return None


def _open_plain(root: int, path: bytes) -> int:
    """Open the directory `path` below `root`, following no symlink."""
    descriptor = os.dup(root)
    for name in path.split(b"/") if path else ():
        try:
            child = os.open(name, PLAIN_DIRECTORY, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = child
    return descriptor


def _copy_attributes(source: int, target: int) -> None:
    there = os.fstat(source)
    os.fchown(target, there.st_uid, there.st_gid)
    os.fchmod(target, stat.S_IMODE(there.st_mode))
    for key in os.listxattr(source):
        if not key.encode().startswith(RESERVED_XATTRS):
            os.setxattr(target, key, os.getxattr(source, key))
    os.utime(target, ns=(there.st_mtime_ns, there.st_mtime_ns))
