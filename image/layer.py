"""Makes a layer's directory out of the entries of its tar, for use as an overlay lower layer.

Everything is reached through descriptors below the layer's root: no name, symlink or hard link of an archive leads
out of it. Whiteouts become what overlayfs knows: a 0/0 character device, and `trusted.overlay.opaque` on directories.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from image.openat2 import Walk, open_directory
from image.overlay import OPAQUE_XATTR, PLAIN_DIRECTORY, RESERVED_XATTRS, is_whiteout, make_whiteout, mark_opaque
from image.tar import (
    BLOCK_DEVICE,
    CHAR_DEVICE,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Entry,
    TarError,
    TarReader,
)

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."  # aufs' own bookkeeping, of no meaning here
_DEPTH_LIMIT = 512  # components of one name
_CACHED_DIRECTORIES = 128  # descriptors kept open
_IMPLIED_LIMIT = 1 << 16  # directories without an entry of their own
_ID_LIMIT = 0xFFFF_FFFE  # the id above it means "leave it" to chown(2)
_INLINE_SYMLINK = 59  # bytes an ext4 inode holds; a longer target takes a block
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class LayerUsage:
    """What an unpacked layer takes on disk, and which of its directories no entry described."""

    size: int  # bytes
    inodes: int
    implied: list[bytes]


class LayerWriter:
    """Writes entries below `root`, an open and empty directory that nobody else changes meanwhile.

    The process's umask must be 0. The working directory is changed at will. With `marked`, directories that hide those
    below them may say so as overlayfs does (archives of a writable layer have that), else only by whiteouts.
    """

    def __init__(self, root: int, *, marked: bool = False) -> None:
        self._root = root
        self._marked = marked
        self._directories: dict[bytes, int] = {}
        self._times: dict[bytes, int] = {}
        self._implied: set[bytes] = {b""}
        self._bytes = 0
        self._inodes = 1
        self._counted = True  # until something was removed whose hard links we do not know

    def write(self, reader: TarReader) -> LayerUsage:
        """Write all entries. Raises TarError for what must not or cannot be unpacked, else OSError."""
        for entry in reader:
            try:
                self._write_entry(entry, reader)
            except OSError as error:
                error.filename = os.fsdecode(entry.name)
                raise
            except (ValueError, OverflowError) as error:  # TarError, a NUL in a name, a number the kernel cannot hold
                raise TarError(f"entry {_shown(entry.name)}: {error}") from None
        self._finish_directories()
        if not self._counted:
            self._count()
        return LayerUsage(self._bytes, self._inodes, sorted(self._implied))

    def _count(self) -> None:
        found = {there.st_ino: there.st_blocks for there in inodes_below(self._root)}
        self._inodes, self._bytes = len(found), sum(found.values()) * 512

    # --- one entry

    def _write_entry(self, entry: Entry, reader: TarReader) -> None:
        path = normalised(entry.name)
        opaque = self._marked and entry.kind == DIRECTORY and (entry.xattrs or {}).pop(OPAQUE_XATTR, b"") == b"y"
        self._refuse(entry)
        if not path:
            if entry.kind != DIRECTORY:
                raise TarError("the layer's root must be a directory")
            self._describe_directory(b"", self._root, entry)
            return
        parent_path, _, name = path.rpartition(b"/")
        if name == _OPAQUE:
            mark_opaque(self._parent(parent_path))
        elif name.startswith(_AUFS):
            return
        elif name.startswith(_WHITEOUT):
            self._white_out(self._parent(parent_path), name[len(_WHITEOUT) :])
        elif entry.kind == DIRECTORY:
            self._make_directory(self._parent(parent_path), path, name, entry)
            if opaque:
                mark_opaque(self._parent(path))
        else:
            self._replace_and_make(self._parent(parent_path), path, name, entry, reader)

    def _refuse(self, entry: Entry) -> None:
        if entry.uid > _ID_LIMIT or entry.gid > _ID_LIMIT:
            raise TarError(f"owner {entry.uid}:{entry.gid} is out of range")
        for key in entry.xattrs or ():
            if key.startswith(RESERVED_XATTRS):
                raise TarError(f"extended attribute {_shown(key)} would redirect the overlay")
        if entry.kind == CHAR_DEVICE and (entry.major, entry.minor) == (0, 0):
            raise TarError("character device 0/0 would be a whiteout")

    def _replace_and_make(self, parent: int, path: bytes, name: bytes, entry: Entry, reader: TarReader) -> None:
        """Make what is no directory; what has the name already gives way, as in any archive."""
        try:
            self._make(parent, name, entry, reader)
        except FileExistsError:
            if entry.kind == HARD_LINK and self._same_file(parent, name, entry.link):
                return
            self._remove(parent, path, name)
            self._make(self._parent(path.rpartition(b"/")[0]), name, entry, reader)

    def _make(self, parent: int, name: bytes, entry: Entry, reader: TarReader) -> None:
        if entry.kind == REGULAR:
            self._make_file(parent, name, entry, reader)
        elif entry.kind == HARD_LINK:
            self._make_hard_link(parent, name, entry)
        elif entry.kind == SYMLINK:
            os.symlink(entry.link, name, dir_fd=parent)
            self._describe(parent, name, entry)
            if len(entry.link) > _INLINE_SYMLINK:
                self._bytes += os.lstat(name, dir_fd=parent).st_blocks * 512
        elif entry.kind == FIFO:
            os.mkfifo(name, 0o600, dir_fd=parent)
            self._describe(parent, name, entry)
        elif entry.kind in (CHAR_DEVICE, BLOCK_DEVICE):
            kind = stat.S_IFCHR if entry.kind == CHAR_DEVICE else stat.S_IFBLK
            os.mknod(name, kind | 0o600, os.makedev(entry.major, entry.minor), dir_fd=parent)
            self._describe(parent, name, entry)
        else:
            raise TarError(f"type {_shown(entry.kind)} is not supported")

    def _make_file(self, parent: int, name: bytes, entry: Entry, reader: TarReader) -> None:
        descriptor = os.open(name, _WRITE, entry.mode & 0o777, dir_fd=parent)
        try:
            if entry.segments is None:
                for piece in reader.content(entry.stored):
                    write_all(descriptor, piece)
            else:
                _write_segments(descriptor, entry, reader)
            # Each change of an inode is a journal transaction; most files are born as they should be.
            there = os.fstat(descriptor)
            if (there.st_uid, there.st_gid) != (entry.uid, entry.gid):
                os.fchown(descriptor, entry.uid, entry.gid)
            if stat.S_IMODE(there.st_mode) != entry.mode:
                os.fchmod(descriptor, entry.mode)
            if entry.xattrs:
                _set_xattrs(descriptor, entry.xattrs)
                there = os.fstat(descriptor)
            os.utime(descriptor, ns=(entry.mtime, entry.mtime))
            self._bytes += there.st_blocks * 512
        finally:
            os.close(descriptor)
        self._inodes += 1

    def _make_hard_link(self, parent: int, name: bytes, entry: Entry) -> None:
        try:
            with self._link_target(entry.link) as (source, target):
                os.link(target, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            raise TarError(f"hard link to {_shown(entry.link)}, which this layer does not have") from None
        except PermissionError:
            raise TarError(f"hard link to {_shown(entry.link)}, which is a directory") from None

    def _same_file(self, parent: int, name: bytes, link: bytes) -> bool:
        try:
            with self._link_target(link) as (source, target):
                return os.path.samestat(os.lstat(name, dir_fd=parent), os.lstat(target, dir_fd=source))
        except (FileNotFoundError, NotADirectoryError):
            return False

    @contextmanager
    def _link_target(self, link: bytes) -> Iterator[tuple[int, bytes]]:
        """The directory and name a hard link points to, both below the root."""
        path, _, name = normalised(link).rpartition(b"/")
        source = open_directory(self._root, path or b".")
        try:
            yield source, name
        finally:
            os.close(source)

    def _describe(self, parent: int, name: bytes, entry: Entry) -> None:
        """Owner, mode, attributes and time of what cannot be opened without side effects."""
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.kind != SYMLINK:
            os.chmod(name, entry.mode, dir_fd=parent)
        if entry.xattrs:
            os.fchdir(parent)  # there is no lsetxattr relative to a directory before Linux 6.13
            _set_xattrs(name, entry.xattrs)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)
        self._inodes += 1

    # --- directories

    def _parent(self, path: bytes) -> int:
        """A descriptor of the directory `path`, made if need be. It stays open until the next call."""
        if not path:
            return self._root
        descriptor = self._directories.get(path)
        if descriptor is None:
            try:
                descriptor = open_directory(self._root, path)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    raise
                descriptor = self._make_parents(path)
            self._remember(path, descriptor)
        return descriptor

    def _remember(self, path: bytes, descriptor: int) -> None:
        if len(self._directories) >= _CACHED_DIRECTORIES:
            self._forget_directories()
        self._directories[path] = descriptor

    def _forget_directories(self) -> None:
        for descriptor in self._directories.values():
            os.close(descriptor)
        self._directories.clear()

    def _make_parents(self, path: bytes) -> int:
        with Walk(self._root) as walk:
            descriptor = walk.descend(path)
        self._inodes += len(walk.made)
        self._counted = self._counted and not walk.replaced
        self._implied.update(walk.made)
        if len(self._implied) > _IMPLIED_LIMIT:
            raise TarError(f"more than {_IMPLIED_LIMIT} directories have no entry of their own")
        return descriptor

    def _make_directory(self, parent: int, path: bytes, name: bytes, entry: Entry) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
            self._inodes += 1
        except FileExistsError:
            there = os.lstat(name, dir_fd=parent)
            if not stat.S_ISDIR(there.st_mode):
                self._remove(parent, path, name)
                parent = self._parent(path.rpartition(b"/")[0])
                os.mkdir(name, 0o700, dir_fd=parent)
                self._inodes += 1
                if is_whiteout(there):
                    mark_opaque(self._open_child(parent, path, name))
        self._describe_directory(path, self._open_child(parent, path, name), entry)

    def _open_child(self, parent: int, path: bytes, name: bytes) -> int:
        descriptor = self._directories.get(path)
        if descriptor is None:
            descriptor = os.open(name, PLAIN_DIRECTORY, dir_fd=parent)
            self._remember(path, descriptor)
        return descriptor

    def _describe_directory(self, path: bytes, descriptor: int, entry: Entry) -> None:
        os.fchown(descriptor, entry.uid, entry.gid)
        os.fchmod(descriptor, entry.mode)
        if entry.xattrs:
            _set_xattrs(descriptor, entry.xattrs)
        self._implied.discard(path)
        self._times[path] = entry.mtime

    def _finish_directories(self) -> None:
        """Set the times of directories last: making an entry in one changes its own."""
        for path in (*self._times, *self._implied):
            try:
                descriptor = open_directory(self._root, path or b".")
            except OSError as error:  # an entry replaced it, under another of its names
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    continue
                raise
            try:
                if (mtime := self._times.get(path)) is not None:
                    os.utime(descriptor, ns=(mtime, mtime))
                self._bytes += os.fstat(descriptor).st_blocks * 512
            finally:
                os.close(descriptor)
        self._forget_directories()

    # --- removal

    def _white_out(self, parent: int, name: bytes) -> None:
        """Hide `name` of the layers below. What this layer itself has under that name stays (image-spec, layer.md)."""
        if name in (b"", b".", b".."):
            raise TarError("whiteout of no name")
        try:
            make_whiteout(parent, name)
            self._inodes += 1
        except FileExistsError:
            if stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                descriptor = os.open(name, PLAIN_DIRECTORY, dir_fd=parent)
                try:
                    mark_opaque(descriptor)
                finally:
                    os.close(descriptor)

    def _remove(self, parent: int, path: bytes, name: bytes) -> None:
        there = os.lstat(name, dir_fd=parent)
        if stat.S_ISDIR(there.st_mode):
            remove_tree(parent, name)
            self._counted = False
            gone = path + b"/"
            self._times = {p: t for p, t in self._times.items() if p != path and not p.startswith(gone)}
            self._implied = {p for p in self._implied if p != path and not p.startswith(gone)}
        else:
            os.unlink(name, dir_fd=parent)
            if there.st_nlink == 1:
                self._inodes -= 1
                self._bytes -= there.st_blocks * 512
        if not stat.S_ISREG(there.st_mode):
            self._forget_directories()


def normalised(name: bytes) -> bytes:
    """`name` as a path below the root: no leading slash, no empty, "." or ".." component; b"" is the root itself.

    Raises TarError for what is no path at all.
    """
    if b"\0" in name:
        raise TarError("a NUL in a name")
    components: list[bytes] = []
    for component in name.split(b"/"):
        if component == b"..":
            del components[-1:]
        elif component not in (b"", b"."):
            components.append(component)
    if len(components) > _DEPTH_LIMIT:
        raise TarError(f"more than {_DEPTH_LIMIT} components in a name")
    return b"/".join(components)


def inodes_below(root: int) -> Iterator[os.stat_result]:
    """What each name below the directory `root`, at any depth, and the directory itself is.

    Changes the working directory, meanwhile too. Raises OSError.
    """
    os.fchdir(root)
    yield os.lstat(b".")
    pending = [iter([b"."])]
    while pending:
        if (child := next(pending[-1], None)) is None:
            pending.pop()
            os.chdir(b"..")
            continue
        os.chdir(child)
        directories = []
        for name in os.listdir(b"."):
            there = os.lstat(name)
            yield there
            if stat.S_ISDIR(there.st_mode):
                directories.append(name)
        pending.append(iter(directories))


def remove_tree(parent: int, name: bytes) -> None:
    """Remove the directory `name` of `parent` with all in it, at any depth.

    Changes the working directory. Raises OSError.
    """
    os.fchdir(parent)
    os.chdir(name)
    pending: list[Iterator[bytes]] = []
    names: list[bytes] = [name]
    while True:
        directories: list[bytes] = []
        with os.scandir(b".") as scan:
            entries = list(scan)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
            else:
                os.unlink(entry.name)
        pending.append(iter(directories))
        while (child := next(pending[-1], None)) is None:
            pending.pop()
            os.chdir(b"..")
            os.rmdir(names.pop())
            if not names:
                return
        os.chdir(child)
        names.append(child)


def write_all(descriptor: int, piece: memoryview) -> None:
    """Write the whole of `piece`. Raises OSError."""
    while piece:
        piece = piece[os.write(descriptor, piece) :]


def _write_segments(descriptor: int, entry: Entry, reader: TarReader) -> None:
    for offset, length in entry.segments or ():
        os.lseek(descriptor, offset, os.SEEK_SET)
        for piece in reader.content(length):
            write_all(descriptor, piece)
    os.ftruncate(descriptor, entry.size)


def _set_xattrs(target: int | bytes, xattrs: dict[bytes, bytes]) -> None:
    """Set extended attributes. Those that the filesystem or the kind of file cannot have are dropped, as every runtime
    does (macOS leaves com.apple.* ones in archives), but for `security.` ones, on which programs rely."""
    for key, value in xattrs.items():
        try:
            if isinstance(target, int):
                os.setxattr(target, key, value)
            else:
                os.setxattr(target, key, value, follow_symlinks=False)
        except OSError as error:
            foreign = error.errno == errno.EOPNOTSUPP and not key.startswith(b"security.")
            if not foreign and not (error.errno == errno.EPERM and key.startswith(b"user.")):
                raise OSError(error.errno, f"set {_shown(key)}: {error.strerror}") from None


def _shown(text: bytes) -> str:
    return repr(text[:200].decode(errors="backslashreplace"))
