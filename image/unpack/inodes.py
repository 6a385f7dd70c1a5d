"""Gives the inodes of a layer's tree what its entries say of them: in the file system, or in notes for an index.

A file system takes owners, devices and most attributes from root only. Notes need no right at all, and all other rules
are the file system's in both.
"""

from __future__ import annotations

import os
import stat
from functools import partial
from typing import Protocol

from image.erofs.notes import Notes, Owned
from image.unpack import acl, overlay, xattrs
from image.unpack.lowers import Seen
from image.unpack.overlay import OPAQUE_XATTR
from image.unpack.tar_header import CHAR_DEVICE, SYMLINK, Entry


class Inodes(Protocol):
    """Raises OSError; what describes an entry ValueError, too. Directories and files are open descriptors."""

    def make_device(self, parent: int, name: bytes, entry: Entry) -> None: ...

    def make_whiteout(self, parent: int, name: bytes) -> None: ...

    def imply(self, parent: int, name: bytes) -> None:
        """Make a directory that no entry describes."""
        ...

    def describe_file(self, file: int, entry: Entry) -> os.stat_result:
        """Describe a new regular file; return how it is now."""
        ...

    def describe(self, parent: int, name: bytes, entry: Entry) -> None:
        """Describe a file that cannot be opened without side effects."""
        ...

    def describe_directory(self, directory: int, entry: Entry) -> None:
        """Describe a directory, but for its time."""
        ...

    def set_default_acl(self, directory: int, value: bytes) -> None: ...

    def adopt(self, directory: int, seen: Seen) -> None:
        """Describe a directory as layers below do."""
        ...

    def mark_opaque(self, directory: int) -> None: ...

    def is_opaque(self, directory: int) -> bool: ...


class Real:
    """Inodes as they are to be, made by root."""

    def make_device(self, parent: int, name: bytes, entry: Entry) -> None:
        os.mknod(name, _kind(entry) | 0o600, os.makedev(entry.major, entry.minor), dir_fd=parent)

    def make_whiteout(self, parent: int, name: bytes) -> None:
        overlay.make_whiteout(parent, name)

    def imply(self, parent: int, name: bytes) -> None:
        os.mkdir(name, 0o755, dir_fd=parent)

    def describe_file(self, file: int, entry: Entry) -> os.stat_result:
        # Each change of an inode is a journal transaction, and most files need none.
        there = os.fstat(file)
        if (there.st_uid, there.st_gid) != (entry.uid, entry.gid):
            os.fchown(file, entry.uid, entry.gid)
        if stat.S_IMODE(there.st_mode) != entry.mode:
            os.fchmod(file, entry.mode)
        if entry.xattrs:
            xattrs.set_all(partial(os.setxattr, file), entry.xattrs)
            there = os.fstat(file)
        os.utime(file, ns=(entry.mtime, entry.mtime))
        return there

    def describe(self, parent: int, name: bytes, entry: Entry) -> None:
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.kind != SYMLINK:
            os.chmod(name, entry.mode, dir_fd=parent)
        if entry.xattrs:
            os.fchdir(parent)  # before Linux 6.13 there is no lsetxattr relative to a directory
            xattrs.set_all(partial(os.setxattr, name, follow_symlinks=False), entry.xattrs)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def describe_directory(self, directory: int, entry: Entry) -> None:
        os.fchown(directory, entry.uid, entry.gid)
        os.fchmod(directory, entry.mode)
        if entry.xattrs:
            xattrs.set_all(partial(os.setxattr, directory), entry.xattrs)

    def set_default_acl(self, directory: int, value: bytes) -> None:
        xattrs.set_all(partial(os.setxattr, directory), {acl.DEFAULT: value})

    def adopt(self, directory: int, seen: Seen) -> None:
        os.fchown(directory, seen.about.uid, seen.about.gid)
        os.fchmod(directory, stat.S_IMODE(seen.about.mode))
        for key, value in seen.xattrs.items():
            os.setxattr(directory, key, value)
        os.utime(directory, ns=(seen.about.mtime, seen.about.mtime))

    def mark_opaque(self, directory: int) -> None:
        overlay.mark_opaque(directory)

    def is_opaque(self, directory: int) -> bool:
        return overlay.is_opaque(directory)


class Noted:
    """Inodes of a tmpfs that somebody without rights makes, and notes about what they are to be in an index."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def make_device(self, parent: int, name: bytes, entry: Entry) -> None:
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=parent)
        try:
            ino = os.fstat(file).st_ino
        finally:
            os.close(file)
        self._notes.make_device(ino, _kind(entry), os.makedev(entry.major, entry.minor))

    def make_whiteout(self, parent: int, name: bytes) -> None:
        overlay.make_whiteout(parent, name)
        self._inherit(parent, name)

    def imply(self, parent: int, name: bytes) -> None:
        os.mkdir(name, 0o700, dir_fd=parent)
        self._inherit(parent, name)

    def _inherit(self, parent: int, name: bytes) -> None:
        """Note what a new inode has from a directory with the set-group-ID bit."""
        above = self._notes.owned(os.fstat(parent))
        if above.mode & stat.S_ISGID:
            made = os.lstat(name, dir_fd=parent)
            mode = self._notes.owned(made).mode | stat.S_ISGID if stat.S_ISDIR(made.st_mode) else 0
            self._notes.own(made.st_ino, Owned(0, above.gid, mode))

    def describe_file(self, file: int, entry: Entry) -> os.stat_result:
        there = os.fstat(file)
        mode = self._note(there.st_ino, stat.S_IFREG, entry)
        if stat.S_IMODE(there.st_mode) != mode:
            os.fchmod(file, mode)
        os.utime(file, ns=(entry.mtime, entry.mtime))
        return there

    def describe(self, parent: int, name: bytes, entry: Entry) -> None:
        there = os.lstat(name, dir_fd=parent)
        kind, _ = self._notes.device(there)
        mode = self._note(there.st_ino, kind, entry)
        if kind != stat.S_IFLNK:
            os.chmod(name, mode, dir_fd=parent)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def describe_directory(self, directory: int, entry: Entry) -> None:
        ino = os.fstat(directory).st_ino
        if (access := self._notes.xattrs(ino).get(acl.ACCESS)) is not None:
            self._notes.set_xattr(ino, acl.ACCESS, acl.changed_mode(access, entry.mode))
        self._note(ino, stat.S_IFDIR, entry)

    def _note(self, ino: int, kind: int, entry: Entry) -> int:
        """Note what an entry says of an inode of this type; return its mode."""
        mode = kind | entry.mode

        def set_one(key: bytes, value: bytes) -> None:
            nonlocal mode
            mode, kept = xattrs.as_root(mode, key, value)
            self._notes.set_xattr(ino, key, kept)

        if entry.xattrs:
            xattrs.set_all(set_one, entry.xattrs)
        directory = kind == stat.S_IFDIR
        if directory or entry.uid or entry.gid:
            self._notes.own(ino, Owned(entry.uid, entry.gid, stat.S_IMODE(mode) if directory else 0))
        return stat.S_IMODE(mode)

    def set_default_acl(self, directory: int, value: bytes) -> None:
        ino = os.fstat(directory).st_ino

        def set_one(key: bytes, value: bytes) -> None:
            self._notes.set_xattr(ino, key, xattrs.as_root(stat.S_IFDIR, key, value)[1])

        xattrs.set_all(set_one, {acl.DEFAULT: value})

    def adopt(self, directory: int, seen: Seen) -> None:
        ino = os.fstat(directory).st_ino
        self._notes.own(ino, Owned(seen.about.uid, seen.about.gid, stat.S_IMODE(seen.about.mode)))
        for key, value in seen.xattrs.items():
            self._notes.set_xattr(ino, key, value)
        os.utime(directory, ns=(seen.about.mtime, seen.about.mtime))

    def mark_opaque(self, directory: int) -> None:
        self._notes.set_xattr(os.fstat(directory).st_ino, OPAQUE_XATTR, b"y")

    def is_opaque(self, directory: int) -> bool:
        return self._notes.xattrs(os.fstat(directory).st_ino).get(OPAQUE_XATTR) == b"y"


def _kind(entry: Entry) -> int:
    return stat.S_IFCHR if entry.kind == CHAR_DEVICE else stat.S_IFBLK
