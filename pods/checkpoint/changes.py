"""Archives what a container changed in its root, while it may go on changing it.

Paths are not to be trusted: between a look and an opening the container may replace what a path names by a link to a
file of the host. So every file is opened once by its name in an already opened directory, never through a link; the
descriptor is then examined and read.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from linux.tables import OVERLAY_ATTRIBUTES, OVERLAY_OPAQUE

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_BUFFER: Final = 256 << 10
_SYNCED_BYTES: Final = 16 << 20
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SEEN: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DEEPEST: Final = 512  # nested directories: each takes two descriptors
_MOST_LINKED: Final = 1 << 17  # hard-linked files to remember; later ones are packed once per name
_KINDS: Final = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}


class TimedFile(io.FileIO):
    """A new file whose writes fail after a deadline. It goes to disk as it grows, so that a last fsync is short."""

    def __init__(self, path: Path, deadline: float | None) -> None:
        """`deadline` is of time.monotonic(); None for none. Raises OSError."""
        super().__init__(os.open(path, _NEW, 0o600), "wb")
        self._deadline = deadline
        self._unsynced = 0

    def write(self, data: Buffer, /) -> int:
        """Write like any file. Raises TimeoutError."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TimeoutError("the deadline is exceeded")
        written = super().write(data)
        self._unsynced += written
        if self._unsynced >= _SYNCED_BYTES:
            os.fdatasync(self.fileno())
            self._unsynced = 0
        return written


def buffered(path: Path, deadline: float | None) -> io.BufferedWriter:
    """Open a `TimedFile` for writes of any size."""
    return io.BufferedWriter(TimedFile(path, deadline), _BUFFER)


def write_changes(upper: Path, target: Path, deadline: float | None = None) -> list[str]:
    """Pack a writable layer. Returns the paths that it deletes from lower layers; the archive marks opaque directories.

    Sockets, and files removed meanwhile, are left out. Raises OSError, ValueError for a tree that is too deep, and
    TimeoutError after the deadline (`TimedFile`).
    """
    deleted: list[str] = []
    with (
        buffered(target, deadline) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        packing = _Packing(archive)
        for name, seen in _below(upper):
            status = os.fstat(seen)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:  # overlayfs.rst "whiteouts and opaque directories"
                deleted.append(name)
            elif stat.S_IFMT(status.st_mode) in _KINDS:
                packing.add(name, seen, status)
    return deleted


def add_file(archive: tarfile.TarFile, name: str, file: IO[bytes]) -> None:
    """Pack an open file with its present size, even if it grows or shrinks meanwhile."""
    archive.addfile(archive.gettarinfo(arcname=name, fileobj=file), _PaddedFile(file))


class _Packing:
    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._linked: dict[tuple[int, int], str] = {}

    def add(self, name: str, seen: int, status: os.stat_result) -> None:
        """Pack the file that `seen` (O_PATH) refers to."""
        member = tarfile.TarInfo(name)
        member.type = _KINDS[stat.S_IFMT(status.st_mode)]
        member.mode, member.mtime = stat.S_IMODE(status.st_mode), status.st_mtime
        member.uid, member.gid = status.st_uid, status.st_gid
        member.pax_headers = _attributes(seen)
        if member.issym():
            member.linkname = os.readlink("", dir_fd=seen)
        elif member.isdev():
            member.devmajor, member.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        elif member.isreg():
            self._add_content(member, seen, status)
            return
        self._put(member)

    def _add_content(self, member: tarfile.TarInfo, seen: int, status: os.stat_result) -> None:
        if status.st_nlink > 1:
            inode = status.st_dev, status.st_ino
            if inode in self._linked:
                member.type, member.linkname = tarfile.LNKTYPE, self._linked[inode]
                self._put(member)
                return
            if len(self._linked) < _MOST_LINKED:
                self._linked[inode] = member.name
        with open(os.open(f"/proc/self/fd/{seen}", _READ), "rb") as file:
            member.size = os.fstat(file.fileno()).st_size
            self._put(member, file)

    def _put(self, member: tarfile.TarInfo, content: IO[bytes] | None = None) -> None:
        self._archive.addfile(member, _PaddedFile(content) if content is not None else None)
        # tarfile keeps every member for a later reading, and a container can make any number of files.
        self._archive.members.clear()  # type: ignore[attr-defined]


class _PaddedFile:
    """A file with endless zeros after its end: it keeps its announced size even if it shrinks while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = 0, /) -> bytes:
        return self._file.read(size).ljust(size, b"\0")


def _attributes(seen: int) -> dict[str, str]:
    """Return extended attributes in the form of GNU tar; of overlay's own only those that other archives have, too."""
    path = f"/proc/self/fd/{seen}"  # refers to the opened file, even if that is a link
    keys = [key for key in os.listxattr(path) if key == OVERLAY_OPAQUE or not key.startswith(OVERLAY_ATTRIBUTES)]
    found = {}
    for key in keys:
        with contextlib.suppress(OSError):  # removed meanwhile
            found[f"SCHILY.xattr.{key}"] = os.getxattr(path, key).decode(errors="surrogateescape")
    return found


def _below(top: Path) -> Iterator[tuple[str, int]]:
    """Yield each file below `top`: its relative path, and an O_PATH descriptor that is valid until the next one.

    A directory comes before its content. No directory is listed as a whole: its names might not fit in memory.
    """
    levels = [_Level("", os.open(top, _DIRECTORY))]
    try:
        while levels:
            level = levels[-1]
            entry = next(level.entries, None)
            if entry is None:
                levels.pop().close()
                continue
            try:
                seen = os.open(entry.name, _SEEN, dir_fd=level.directory)
            except FileNotFoundError:
                continue
            try:
                name = f"{level.path}{entry.name}"
                yield name, seen
                if stat.S_ISDIR(os.fstat(seen).st_mode):
                    if len(levels) > _DEEPEST:
                        raise ValueError(f"{name[:64]!r}... is deeper than {_DEEPEST} directories")
                    levels.append(_Level(f"{name}/", os.open(".", _DIRECTORY, dir_fd=seen)))
            finally:
                os.close(seen)
    finally:
        for level in levels:
            level.close()


class _Level:
    """A directory while it is read."""

    def __init__(self, path: str, directory: int) -> None:
        self.path = path
        self.directory = directory
        self._closing = contextlib.ExitStack()
        self._closing.callback(os.close, directory)
        self.entries: Iterator[os.DirEntry[str]] = self._closing.enter_context(os.scandir(directory))

    def close(self) -> None:
        self._closing.close()
