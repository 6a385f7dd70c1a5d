"""Makes a layer's directory out of the entries of its tar, for use as an overlay lower layer.

Everything is reached through descriptors below the layer's root: no name, symlink or hard link of an archive leads
out of it. Whiteouts become what overlayfs knows: a 0/0 character device, and `trusted.overlay.opaque` on directories.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice

from image.unpack.directories import Directories
from image.unpack.overlay import OPAQUE_XATTR, PLAIN_DIRECTORY, RESERVED_XATTRS, is_whiteout, make_whiteout, mark_opaque
from image.unpack.tar import (
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
from image.unpack.walk import Walk, open_directory

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."  # aufs' own bookkeeping, of no meaning here
_AUFS_LINKS = b".wh..wh.plnk"  # but that hard links lead to files in it
_DEPTH_LIMIT = 512  # components of one name
_CACHED_DIRECTORIES = 128  # descriptors kept open
_MAJOR_LIMIT, _MINOR_LIMIT = 0xFFF, 0xF_FFFF  # the kernel cuts larger numbers of devices: they would be others
_REMOVED_AT_ONCE = 10_000  # names of a directory
_ID_LIMIT = 0xFFFF_FFFE  # the id above it means "leave it" to chown(2)
_INLINE_SYMLINK = 59  # bytes an ext4 inode holds; a longer target takes a block
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class LayerUsage:
    """What an unpacked layer takes on disk, and what only the layers below can settle (`Directories.unsettled`)."""

    size: int  # bytes
    inodes: int
    unsettled: bytes


class LayerWriter:
    """Writes entries below `root`, an open and empty directory that nobody else changes meanwhile.

    The process's umask must be 0. The working directory is changed at will. With `marked`, directories that hide those
    below them may say so as overlayfs does (archives of a writable layer have that), else only by whiteouts.
    """

    def __init__(self, root: int, *, marked: bool = False) -> None:
        self._root = root
        self._marked = marked
        self._directories: dict[bytes, int] = {}
        self._known = Directories()
        self._whited: bytes | None = None  # the directory, as entries call it, that had the last whiteout
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
        self._remove_aufs_links()
        self._finish_directories()
        if not self._counted:
            self._count()
        return LayerUsage(self._bytes, self._inodes, self._known.unsettled())

    def _count(self) -> None:
        self._inodes = self._bytes = 0
        for there in inodes_below(self._root):
            self._inodes += 1
            self._bytes += there.st_blocks * 512

    # --- one entry

    def _write_entry(self, entry: Entry, reader: TarReader) -> None:
        path = normalised(entry.name)
        opaque = self._marked and entry.kind == DIRECTORY and (entry.xattrs or {}).pop(OPAQUE_XATTR, b"") == b"y"
        _make_harmless(entry)
        if not path:
            self._describe_root(entry)
            return
        parent_path, _, name = path.rpartition(b"/")
        if name == _OPAQUE:
            mark_opaque(self._parent(parent_path))
            self._remember_whited(parent_path)
        elif name.startswith(_AUFS) or _is_bookkeeping(parent_path):
            return
        elif name.startswith(_WHITEOUT):
            self._white_out(self._parent(parent_path), name[len(_WHITEOUT) :])
            self._remember_whited(parent_path)
        elif entry.kind == DIRECTORY:
            self._make_directory(self._parent(parent_path), path, name, entry)
            if opaque:
                mark_opaque(self._parent(path))
        else:
            self._replace_and_make(self._parent(parent_path), path, name, entry, reader)

    def _describe_root(self, entry: Entry) -> None:
        if entry.kind == DIRECTORY:
            self._describe_directory(b"", self._root, entry)
        elif entry.name:  # what has no name at all is skipped, as by others
            raise TarError("the layer's root must be a directory")

    def _replace_and_make(self, parent: int, path: bytes, name: bytes, entry: Entry, reader: TarReader) -> None:
        """Make what is no directory; what has the name already gives way, as in any archive."""
        parent_path = path.rpartition(b"/")[0]
        try:
            self._make(parent, name, entry, reader)
        except FileExistsError:
            if entry.kind == HARD_LINK and self._same_file(parent, name, entry.link):
                return
            self._remove(parent, path, name)
            self._make(self._parent(parent_path), name, entry, reader)
        if _is_whiteout_entry(entry):
            self._remember_whited(parent_path)

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
        elif _is_whiteout_entry(entry):
            make_whiteout(parent, name)
            self._inodes += 1
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
                if is_whiteout(os.lstat(target, dir_fd=source)):
                    raise FileNotFoundError
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
        self._whited = None

    def _make_parents(self, path: bytes) -> int:
        with Walk(self._root) as walk:
            descriptor = walk.descend(path)
        self._inodes += len(walk.made)
        self._counted = self._counted and not walk.replaced
        for made in walk.made:
            self._known.imply(made)
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
        self._known.describe(path, entry.mtime)

    def _finish_directories(self) -> None:
        """Set the times of directories last: making an entry in one changes its own."""
        for path, mtime in self._known:
            try:
                descriptor = open_directory(self._root, path or b".")
            except OSError as error:  # an entry replaced it, under another of its names
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    continue
                raise
            try:
                if mtime is not None:
                    os.utime(descriptor, ns=(mtime, mtime))
                self._bytes += os.fstat(descriptor).st_blocks * 512
            finally:
                os.close(descriptor)
        self._forget_directories()

    def _remember_whited(self, path: bytes) -> None:
        """Have the whiteouts in the directory `path` looked at again when the layers below are known."""
        if path != self._whited:
            with Walk(self._root) as walk:
                os.close(walk.descend(path))
            self._known.white(walk.path)
            self._whited = path

    # --- removal

    def _remove_aufs_links(self) -> None:
        """Names that hard links needed, and nobody else."""
        with suppress(FileNotFoundError):
            self._remove(self._root, _AUFS_LINKS, _AUFS_LINKS)

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
            self._known.forget(path)
        else:
            os.unlink(name, dir_fd=parent)
            if there.st_nlink == 1:
                self._inodes -= 1
                self._bytes -= there.st_blocks * 512
        if not stat.S_ISREG(there.st_mode):
            self._forget_directories()


def _make_harmless(entry: Entry) -> None:
    """Take from an entry what would be an order to the overlay, and what others read in another way than it was meant.

    Raises TarError for numbers that the kernel would take for others.
    """
    if not (0 <= entry.uid <= _ID_LIMIT and 0 <= entry.gid <= _ID_LIMIT):
        entry.uid, entry.gid = _id(entry.uid), _id(entry.gid)
    if entry.major > _MAJOR_LIMIT or entry.minor > _MINOR_LIMIT:
        raise TarError(f"device {entry.major}:{entry.minor} is out of range")
    if entry.xattrs:
        entry.xattrs = {key: value for key, value in entry.xattrs.items() if not key.startswith(RESERVED_XATTRS)}


def _id(number: int) -> int:
    """A user or group. A negative one is what a signed 32 bit number was: macOS' nobody is -2."""
    unsigned = number + (1 << 32) if -(1 << 31) <= number < 0 else number
    if not 0 <= unsigned <= _ID_LIMIT:
        raise TarError(f"owner {number} is out of range")
    return unsigned


def _is_whiteout_entry(entry: Entry) -> bool:
    """Whether it is overlayfs' own whiteout, which hides as a `.wh.` entry does."""
    return entry.kind == CHAR_DEVICE and (entry.major, entry.minor) == (0, 0)


def _is_bookkeeping(parent_path: bytes) -> bool:
    """Whether what is in the directory is of aufs' own, and not wanted by hard links."""
    if _AUFS not in parent_path:
        return False
    first, *others = parent_path.split(b"/")
    return (first != _AUFS_LINKS and first.startswith(_AUFS)) or any(name.startswith(_AUFS) for name in others)


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
    """Each inode below the directory `root`, at any depth, and the directory's own, whatever names it has.

    Changes the working directory, meanwhile too. Raises OSError.
    """
    os.fchdir(root)
    yield os.lstat(b".")
    linked: set[int] = set()
    pending = [iter([b"."])]
    while pending:
        if (child := next(pending[-1], None)) is None:
            pending.pop()
            os.chdir(b"..")
            continue
        os.chdir(child)
        directories = []
        with os.scandir(b".") as scan:
            for entry in scan:
                there = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(there.st_mode):
                    directories.append(entry.name)
                elif there.st_nlink > 1:
                    if there.st_ino in linked:
                        continue
                    linked.add(there.st_ino)
                yield there
        pending.append(iter(directories))


def remove_tree(parent: int, name: bytes) -> None:
    """Remove the directory `name` of `parent` with all in it, at any depth and any number.

    Changes the working directory. Raises OSError.
    """
    os.fchdir(parent)
    os.chdir(name)
    names = [name]
    pending = [_emptied()]
    while pending:
        directories, whole = pending[-1]
        if directories:
            child = directories.pop()
            os.chdir(child)
            names.append(child)
            pending.append(_emptied())
        elif not whole:
            pending[-1] = _emptied()
        else:
            pending.pop()
            os.chdir(b"..")
            os.rmdir(names.pop())


def _emptied() -> tuple[list[bytes], bool]:
    """Remove what is no directory from the working directory, or from a part of it; which directories were met, and
    whether that was all. It is done in parts: there may be more names than there is memory."""
    directories: list[bytes] = []
    with os.scandir(b".") as scan:
        entries = list(islice(scan, _REMOVED_AT_ONCE))
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            directories.append(entry.name)
        else:
            os.unlink(entry.name)
    return directories, len(entries) < _REMOVED_AT_ONCE


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
