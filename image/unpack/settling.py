"""Finishes a layer when the layers below it are known: what its entries do not say is as those say."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from image.erofs.layout import Attributes
from image.unpack.inodes import Inodes
from image.unpack.lowers import Below
from image.unpack.overlay import PLAIN_DIRECTORY, is_whiteout

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Tree(NamedTuple):
    """The tree of a layer: its root, which is open, and who knows what its inodes are."""

    root: int
    inodes: Inodes


def settle(layer: Tree, below: Below, implied: Iterable[bytes], whited: Iterable[bytes]) -> tuple[int, int]:
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
        if not _is_merged(layer, below, path):
            inodes += _remove_whiteouts(layer.root, path)
            for gone in _remove_if_needless(layer, below, path, left):
                left.remove(gone.path)
                size, inodes = size + gone.size, inodes + 1
    for path in left:
        _adopt(layer, below, path)
    return size, inodes


def attributes_to_adopt(
    layer: Tree, below: Below, implied: Iterable[bytes], whited: Iterable[bytes]
) -> list[tuple[int, Attributes]] | None:
    """What `settle` would change, if that is no more than owners, modes and times of directories: their inodes, with
    what the layers below say of them. None if it is more. Raises OSError."""
    if not all(_is_merged(layer, below, path) for path in whited):
        return None
    found = []
    for path in implied:
        if (seen := below.visible(path)) is None:
            continue
        if seen.xattrs:
            return None
        if (number := _inode_of(layer.root, path)) is not None:
            found.append((number, seen.about))
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


def _adopt(layer: Tree, below: Below, path: bytes) -> None:
    if (seen := below.visible(path)) is None:
        return
    try:
        target = _open_plain(layer.root, path)
    except OSError as error:
        if error.errno in _NOT_THERE:  # an entry replaced it under another name
            return
        raise
    try:
        layer.inodes.adopt(target, seen)
    finally:
        os.close(target)


def _depth(path: bytes) -> int:
    return path.count(b"/") + bool(path)


def _is_merged(layer: Tree, below: Below, path: bytes) -> bool:
    """Return whether overlayfs merges the directory `path` with a lower one; True if it is no directory any more."""
    return _is_below(layer, below, path, hidden=True)


def _is_below(layer: Tree, below: Below, path: bytes, *, hidden: bool) -> bool:
    """Return whether the lower layers have the directory `path`.

    An opaque parent hides it; with `hidden` being opaque itself hides it, too.
    """
    descriptor = os.dup(layer.root)
    try:
        opaque = False
        for name in path.split(b"/") if path else ():
            opaque = opaque or layer.inodes.is_opaque(descriptor)
            child = os.open(name, PLAIN_DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = child
        opaque = opaque or (hidden and layer.inodes.is_opaque(descriptor))
    except OSError as error:
        if error.errno in _NOT_THERE:
            return True
        raise
    finally:
        os.close(descriptor)
    return not opaque and below.visible(path) is not None


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


def _remove_if_needless(layer: Tree, below: Below, path: bytes, implied: Collection[bytes]) -> Iterator[_Gone]:
    """Remove an empty directory without an entry, and its parents that were made for it alone."""
    while path and path in implied and not _is_below(layer, below, path, hidden=False):
        above, _, name = path.rpartition(b"/")
        parent = _open_plain(layer.root, above)
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
