"""Makes a layer's directory from the entries of its tar, for use as an overlay lower layer.

Every access is relative to descriptors below the layer's root, so no name, symlink or hard link in an archive leads out
of it. Whiteouts take overlayfs' form: a 0/0 character device, and `trusted.overlay.opaque` on directories.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from image.unpack import acl, xattrs
from image.unpack.contents import Contents, Written
from image.unpack.directories import Directories
from image.unpack.harmless import (
    AUFS,
    AUFS_LINKS,
    OPAQUE,
    WHITEOUT,
    is_bookkeeping,
    is_whiteout_entry,
    make_harmless,
    normalised,
)
from image.unpack.inodes import Inodes, Real
from image.unpack.open_directories import OpenDirectories, Place
from image.unpack.overlay import OPAQUE_XATTR, PLAIN_DIRECTORY, is_whiteout
from image.unpack.tar import TarReader
from image.unpack.tar_header import (
    BLOCK_DEVICE,
    CHAR_DEVICE,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Entry,
    TarError,
)
from image.unpack.trees import inodes_below, remove_tree
from image.unpack.walk import Walk, open_directory
from linux.user_namespaces import STARTED_IN_ONE

_INLINE_SYMLINK = 59  # bytes an ext4 inode holds; a longer target takes a block
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class LayerUsage:
    """A layer's disk use, and what needs the lower layers to be settled (`Directories.unsettled`)."""

    size: int  # bytes
    inodes: int
    unsettled: bytes


class LayerWriter:
    """Writes entries below `root`, an open and empty directory that nobody else changes.

    The process's umask must be 0, and its working directory is changed. With `marked`, directories may be opaque by
    overlayfs' attribute (as in archives of writable layers), otherwise only by whiteouts. `contents` takes the contents
    of files, `inodes` all else that entries say of them.
    """

    def __init__(
        self, root: int, contents: Contents | None = None, inodes: Inodes | None = None, *, marked: bool = False
    ) -> None:
        self._root = root
        self._contents = contents or Written()
        self._about = inodes or Real()
        self._marked = marked
        self._open = OpenDirectories(root, self._about, self._account)
        self._known = Directories()
        self._bytes = 0
        self._inodes = 1
        self._counted = True  # False after removing something with unknown hard links

    def write(self, reader: TarReader) -> LayerUsage:
        """Write all entries. Raises TarError for what must not or cannot be unpacked, otherwise OSError."""
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
        make_harmless(entry)
        if not path:
            self._describe_root(entry)
            return
        above, _, name = path.rpartition(b"/")
        if name == OPAQUE:
            self._about.mark_opaque(self._whited(above).descriptor)
        elif name.startswith(AUFS) or is_bookkeeping(above):
            return
        elif name.startswith(WHITEOUT):
            self._white_out(self._whited(above).descriptor, name[len(WHITEOUT) :])
        elif entry.kind == DIRECTORY:
            made = self._make_directory(path, entry)
            if opaque:
                self._about.mark_opaque(made.descriptor)
        else:
            self._replace_and_make(path, entry, reader)

    def _whited(self, path: bytes) -> Place:
        """Return a directory that gets a whiteout; its whiteouts are checked again when the lower layers are known."""
        place = self._open.find(path)
        self._known.white(place.path)
        return place

    def _describe_root(self, entry: Entry) -> None:
        if entry.kind == DIRECTORY:
            self._describe_directory(Place(self._root, b""), entry)
        elif entry.name:  # an entry without a name is skipped, as by other runtimes
            raise TarError("the layer's root must be a directory")

    def _replace_and_make(self, path: bytes, entry: Entry, reader: TarReader) -> None:
        """Make something other than a directory, replacing what has the name already."""
        above, _, name = path.rpartition(b"/")
        parent = self._open.find(above)
        try:
            self._make(parent.descriptor, name, entry, reader)
        except FileExistsError:
            if entry.kind == HARD_LINK and self._same_file(parent.descriptor, name, entry.link):
                return
            self._remove(parent, name)
            self._make(self._open.find(above).descriptor, name, entry, reader)
        if is_whiteout_entry(entry):
            self._whited(above)

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
        elif is_whiteout_entry(entry):
            self._about.make_whiteout(parent, name)
            self._inodes += 1
        elif entry.kind in (CHAR_DEVICE, BLOCK_DEVICE):
            if STARTED_IN_ONE:  # nobody can make devices in a user namespace; containerd leaves them out, too
                return
            self._about.make_device(parent, name, entry)
            self._describe(parent, name, entry)
        else:
            raise TarError(f"type {_shown(entry.kind)} is not supported")

    def _make_file(self, parent: int, name: bytes, entry: Entry, reader: TarReader) -> None:
        descriptor = os.open(name, _WRITE, entry.mode & 0o777, dir_fd=parent)
        try:
            self._contents.put(descriptor, entry, reader)
            self._bytes += self._about.describe_file(descriptor, entry).st_blocks * 512
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
        """Open the directory that a hard link points to, below the root; yield it and the name in it."""
        path, _, name = normalised(link).rpartition(b"/")
        source = open_directory(self._root, path or b".")
        try:
            yield source, name
        finally:
            os.close(source)

    def _describe(self, parent: int, name: bytes, entry: Entry) -> None:
        self._about.describe(parent, name, entry)
        self._inodes += 1

    # --- directories

    def _account(self, walk: Walk) -> None:
        """Count the directories made on the way to a directory, and record that they have no entries."""
        self._inodes += len(walk.made)
        self._counted = self._counted and not walk.replaced
        for made in walk.made:
            self._known.imply(made)

    def _make_directory(self, path: bytes, entry: Entry) -> Place:
        above, _, name = path.rpartition(b"/")
        parent = self._open.find(above)
        try:
            os.mkdir(name, 0o700, dir_fd=parent.descriptor)
            self._inodes += 1
        except FileExistsError:
            there = os.lstat(name, dir_fd=parent.descriptor)
            if not stat.S_ISDIR(there.st_mode):
                self._remove(parent, name)
                parent = self._open.find(above)
                os.mkdir(name, 0o700, dir_fd=parent.descriptor)
                self._inodes += 1
                if is_whiteout(there):
                    self._about.mark_opaque(self._open.enter(parent, path).descriptor)
        made = self._open.enter(parent, path)
        self._describe_directory(made, entry)
        return made

    def _describe_directory(self, place: Place, entry: Entry) -> None:
        inherited = (entry.xattrs or {}).pop(acl.DEFAULT, b"")
        if inherited:  # by what is made in it from then on, so it is set last; but it is refused here
            xattrs.set_all(partial(xattrs.as_root, stat.S_IFDIR), {acl.DEFAULT: inherited})
        self._about.describe_directory(place.descriptor, entry)
        self._known.describe(place.path, entry.mtime, inherited)

    def _finish_directories(self) -> None:
        """Set what making an entry in a directory would change, or would inherit."""
        with Walk(self._root, self._about) as walk:
            for path, mtime, inherited in self._known:
                descriptor = walk.go(path)
                if inherited:
                    self._about.set_default_acl(descriptor, inherited)
                if mtime is not None:
                    os.utime(descriptor, ns=(mtime, mtime))
                self._bytes += os.fstat(descriptor).st_blocks * 512
        self._open.forget()

    # --- removal

    def _remove_aufs_links(self) -> None:
        """Remove the files that only hard links needed."""
        with suppress(FileNotFoundError):
            self._remove(Place(self._root, b""), AUFS_LINKS)

    def _white_out(self, parent: int, name: bytes) -> None:
        """Hide `name` of the lower layers. This layer's own file with that name stays (image-spec, layer.md)."""
        if name in (b"", b".", b".."):
            raise TarError("a whiteout without a name")
        try:
            self._about.make_whiteout(parent, name)
            self._inodes += 1
        except FileExistsError:
            if stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                descriptor = os.open(name, PLAIN_DIRECTORY, dir_fd=parent)
                try:
                    self._about.mark_opaque(descriptor)
                finally:
                    os.close(descriptor)

    def _remove(self, parent: Place, name: bytes) -> None:
        there = os.lstat(name, dir_fd=parent.descriptor)
        if stat.S_ISDIR(there.st_mode):
            remove_tree(parent.descriptor, name)
            self._counted = False
            self._known.forget(parent.child(name))
        else:
            os.unlink(name, dir_fd=parent.descriptor)
            if there.st_nlink == 1:
                self._inodes -= 1
                self._bytes -= there.st_blocks * 512
        if not stat.S_ISREG(there.st_mode):
            self._open.forget()


def _shown(text: bytes) -> str:
    return repr(text[:200].decode(errors="backslashreplace"))
