"""overlayfs' metadata in lower layers: whiteouts, opaque directories, and attributes of merged directories."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from linux.tables import OVERLAY_ATTRIBUTES, OVERLAY_OPAQUE, SELINUX_LABEL, USERS_OVERLAY_ATTRIBUTES

OPAQUE_XATTR = OVERLAY_OPAQUE.encode()
# Attributes that an archive does not decide: they say what this machine does with a file.
RESERVED_XATTRS = (OVERLAY_ATTRIBUTES.encode(), USERS_OVERLAY_ATTRIBUTES.encode(), SELINUX_LABEL.encode())
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
PLAIN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def is_whiteout(there: os.stat_result) -> bool:
    return stat.S_ISCHR(there.st_mode) and there.st_rdev == 0


def make_whiteout(parent: int, name: bytes) -> None:
    os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent)


def mark_opaque(directory: int) -> None:
    """Hide the lower layers' entries of this directory."""
    os.setxattr(directory, OPAQUE_XATTR, b"y")


def is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, OPAQUE_XATTR) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise


class Lowers:
    """The layers below one, topmost first. Each is opened at its first use."""

    def __init__(self, openers: Sequence[Callable[[], int]]) -> None:
        self._openers = openers
        self._opened: list[int] = []

    def __iter__(self) -> Iterator[int]:
        """Yield descriptors of their roots. Raises OSError."""
        for number, opener in enumerate(self._openers):
            if number == len(self._opened):
                self._opened.append(opener())
            yield self._opened[number]

    def open_all(self) -> None:
        """Open all now, because it may be impossible later. Raises OSError."""
        for _ in self:
            pass

    def __enter__(self) -> Lowers:
        return self

    def __exit__(self, *exc: object) -> None:
        for descriptor in self._opened:
            os.close(descriptor)


def settle(layer: int, lowers: Lowers, implied: Iterable[bytes], whited: Iterable[bytes]) -> tuple[int, int]:
    """Finish a layer now that its lower layers are known. Returns the bytes and inodes removed. Raises OSError.

    Directories without an entry (`implied`) get owner, mode, xattrs and time from the lower layers. Otherwise an
    archive with `tmp/x` but no `tmp/` would make the image's /tmp a 0755 directory.

    From directories with whiteouts (`whited`) that no lower layer has, the whiteouts are removed: overlayfs does not
    interpret whiteouts in an unmerged directory, and lists them. A directory made only for whiteouts is removed as
    well.
    """
    left = set(implied)
    size = inodes = 0
    for path in sorted(whited, key=_depth, reverse=True):
        if not _is_merged(layer, lowers, path):
            inodes += _remove_whiteouts(layer, path)
            for gone in _remove_if_needless(layer, lowers, path, left):
                left.remove(gone.path)
                size, inodes = size + gone.size, inodes + 1
    for path in left:
        _adopt(layer, lowers, path)
    return size, inodes


def attributes_to_adopt(
    layer: int, lowers: Lowers, implied: Iterable[bytes], whited: Iterable[bytes]
) -> list[tuple[int, os.stat_result]] | None:
    """What `settle` would change, if that is no more than owners, modes and times of directories: their inodes, with
    what the layers below say of them. None if it is more. Raises OSError."""
    if not all(_is_merged(layer, lowers, path) for path in whited):
        return None
    found = []
    for path in implied:
        model = _visible_directory(lowers, path)
        if model is None:
            continue
        try:
            if has_attributes(model):
                return None
            if (number := _inode_of(layer, path)) is not None:
                found.append((number, os.fstat(model)))
        finally:
            os.close(model)
    return found


def _inode_of(layer: int, path: bytes) -> int | None:
    try:
        directory = _open_plain(layer, path)
    except OSError as error:
        if error.errno in _NOT_THERE:  # an entry replaced it, under another of its names
            return None
        raise
    try:
        return os.fstat(directory).st_ino
    finally:
        os.close(directory)


def adopt_root(layer: int, lower: int) -> None:
    """Copy the attributes of the lower layer's root to a layer's root. Raises OSError."""
    _copy_attributes(lower, layer)


def _adopt(layer: int, lowers: Lowers, path: bytes) -> None:
    model = _visible_directory(lowers, path)
    if model is None:
        return
    try:
        try:
            target = _open_plain(layer, path)
        except OSError as error:
            if error.errno in _NOT_THERE:  # an entry replaced it under another name
                return
            raise
        try:
            _copy_attributes(model, target)
        finally:
            os.close(target)
    finally:
        os.close(model)


def _depth(path: bytes) -> int:
    return path.count(b"/") + bool(path)


def _is_merged(layer: int, lowers: Lowers, path: bytes) -> bool:
    """Return whether overlayfs merges the directory `path` with a lower one; True if it is no directory any more."""
    return _is_below(layer, lowers, path, hidden=True)


def _is_below(layer: int, lowers: Lowers, path: bytes, *, hidden: bool) -> bool:
    """Return whether the lower layers have the directory `path`.

    An opaque parent hides it; with `hidden` being opaque itself hides it, too.
    """
    descriptor = os.dup(layer)
    try:
        opaque = False
        for name in path.split(b"/") if path else ():
            opaque = opaque or is_opaque(descriptor)
            child = os.open(name, PLAIN_DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = child
        opaque = opaque or (hidden and is_opaque(descriptor))
    except OSError as error:
        if error.errno in _NOT_THERE:
            return True
        raise
    finally:
        os.close(descriptor)
    if opaque:
        return False
    model = _visible_directory(lowers, path)
    if model is None:
        return False
    os.close(model)
    return True


def _remove_whiteouts(layer: int, path: bytes) -> int:
    """Remove the whiteouts directly in the directory. Returns their number."""
    removed = 0
    directory = _open_plain(layer, path)
    try:
        with _time_kept(directory), os.scandir(directory) as scan:
            for entry in scan:
                plain = entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)
                if not plain and is_whiteout(entry.stat(follow_symlinks=False)):
                    os.unlink(entry.name, dir_fd=directory)
                    removed += 1
    finally:
        os.close(directory)
    return removed


@dataclass(frozen=True, slots=True)
class _Gone:
    path: bytes
    size: int  # bytes it took


def _remove_if_needless(layer: int, lowers: Lowers, path: bytes, implied: Collection[bytes]) -> Iterator[_Gone]:
    """Remove an empty directory without an entry, and its parents that were made for it alone."""
    while path and path in implied and not _is_below(layer, lowers, path, hidden=False):
        above, _, name = path.rpartition(b"/")
        parent = _open_plain(layer, above)
        try:
            with _time_kept(parent):
                there = os.lstat(name, dir_fd=parent)
                os.rmdir(name, dir_fd=parent)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                return
            raise
        finally:
            os.close(parent)
        yield _Gone(path, there.st_blocks * 512)
        path = above


@contextmanager
def _time_kept(directory: int) -> Iterator[None]:
    """Restore the directory's time after a removal."""
    there = os.fstat(directory)
    yield
    os.utime(directory, ns=(there.st_mtime_ns, there.st_mtime_ns))


def _visible_directory(lowers: Iterable[int], path: bytes) -> int | None:
    """Open the directory from which an overlay of `lowers` takes the attributes of `path`; None if there is none."""
    for lower in lowers:
        descriptor = os.dup(lower)
        opaque = False
        for name in path.split(b"/") if path else ():
            opaque = opaque or is_opaque(descriptor)
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
    """Open the directory `path` below `root` without following symlinks."""
    descriptor = os.dup(root)
    for name in path.split(b"/") if path else ():
        try:
            child = os.open(name, PLAIN_DIRECTORY, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = child
    return descriptor


def has_attributes(directory: int) -> bool:
    """Return whether it has extended attributes that a higher layer would adopt. Raises OSError."""
    return any(not key.encode().startswith(RESERVED_XATTRS) for key in os.listxattr(directory))


def _copy_attributes(source: int, target: int) -> None:
    there = os.fstat(source)
    os.fchown(target, there.st_uid, there.st_gid)
    os.fchmod(target, stat.S_IMODE(there.st_mode))
    for key in os.listxattr(source):
        if not key.encode().startswith(RESERVED_XATTRS):
            os.setxattr(target, key, os.getxattr(source, key))
    os.utime(target, ns=(there.st_mtime_ns, there.st_mtime_ns))
