"""Makes the volumes that an image declares (VOLUME): directories of the container, with the image's content.

If the image has nothing or an empty directory at the path, a directory is mounted there: programs that mount an overlay
in their volume need another file system below it. If the image has content there, the volume stays in the container's
writable layer, which lives as long; below a read-only root it is copied instead.

Every file is opened relative to an open directory. Links are followed only on the way to a volume, and stay inside the
image's root (CVE-2022-23648).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from linux.syscalls import open_in_root
from linux.tables import OVERLAY_ATTRIBUTES, USERS_OVERLAY_ATTRIBUTES
from pods.errors import InvalidArgument

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SOURCE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_TARGET: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK: Final = 1 << 30
_DEEPEST: Final = 512  # nested directories: each takes two descriptors
_MOST_LINKED: Final = 1 << 16  # hard-linked files to remember; later ones are copied once per name
_OTHER_WAYS: Final = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
# Overlay's attributes describe its layers; the SELinux label is the new directory's.
_NOT_COPIED: Final = (OVERLAY_ATTRIBUTES, USERS_OVERLAY_ATTRIBUTES, "security.selinux")


def make(
    rootfs: int, wanted: Mapping[str, str], place: Path, owner: tuple[int, int], *, readonly: bool
) -> dict[str, str]:
    """Make the directories to be mounted, in `place`. Returns path in the container -> directory name.

    `wanted` maps the paths of all volumes to names; `owner` owns those that the image does not contain. Raises
    InvalidArgument for a tree too deep to copy, OSError.
    """
    with contextlib.ExitStack() as opened:
        place.mkdir(exist_ok=True)
        parent = os.open(place, _DIRECTORY)
        opened.callback(os.close, parent)
        return {
            path: name
            for path, name in wanted.items()
            if _make(rootfs, path, parent, name, owner, readonly=readonly)
        }


def _make(rootfs: int, path: str, parent: int, name: str, owner: tuple[int, int], *, readonly: bool) -> bool:
    try:
        source = open_in_root(rootfs, path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        os.mkdir(name, 0o755, dir_fd=parent)
        os.chown(name, *owner, dir_fd=parent)
        return True
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):  # not a directory: nothing can be mounted there
            return False
        raise
    try:
        if not readonly and _has_content(source):
            return False
        os.mkdir(name, 0o700, dir_fd=parent)
        target = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            _Copy(target, path).run(source)
        finally:
            os.close(target)
    finally:
        os.close(source)
    return True


def _has_content(directory: int) -> bool:
    with os.scandir(directory) as entries:
        return next(entries, None) is not None


@dataclass(slots=True)
class _Level:
    """A directory while it is copied."""

    source: int
    target: int
    names: Iterator[os.DirEntry[str]]  # read one by one: they may not fit in memory
    path: str  # relative to the top

    def close(self) -> None:
        os.close(self.source)
        os.close(self.target)


@dataclass(slots=True)
class _Copy:
    """Copies a tree with owners, modes, times, attributes and links."""

    top: int
    volume: str
    linked: dict[tuple[int, int], str] = field(default_factory=dict)
    levels: list[_Level] = field(default_factory=list)

    def run(self, source: int) -> None:
        """Copy the directory `source` and its content to the top. Raises OSError, InvalidArgument."""
        try:
            self._enter(os.dup(source), os.dup(self.top), "")
            while self.levels:
                level = self.levels[-1]
                if (entry := next(level.names, None)) is not None:
                    self._copy(entry, level)
                    continue
                # Last: making entries in a directory changes its times.
                _copy_attributes(level.source, level.target, os.fstat(level.source))
                self.levels.pop().close()
        finally:
            for level in self.levels:
                level.close()

    def _enter(self, source: int, target: int, path: str) -> None:
        self.levels.append(_Level(source, target, os.scandir(source), path))

    def _copy(self, entry: os.DirEntry[str], level: _Level) -> None:
        status = os.stat(entry.name, dir_fd=level.source, follow_symlinks=False)
        path = f"{level.path}{entry.name}"
        if stat.S_ISDIR(status.st_mode):
            if len(self.levels) >= _DEEPEST:
                raise InvalidArgument(f"image: volume {self.volume!r} is deeper than {_DEEPEST} directories")
            os.mkdir(entry.name, 0o700, dir_fd=level.target)
            source = os.open(entry.name, _DIRECTORY, dir_fd=level.source)
            try:
                target = os.open(entry.name, _DIRECTORY, dir_fd=level.target)
            except OSError:
                os.close(source)
                raise
            self._enter(source, target, f"{path}/")
            return
        if status.st_nlink > 1:
            key = (status.st_dev, status.st_ino)
            if (first := self.linked.get(key)) is not None:
                os.link(first, entry.name, src_dir_fd=self.top, dst_dir_fd=level.target, follow_symlinks=False)
                return
            if len(self.linked) < _MOST_LINKED and len(os.fsencode(path)) < 4096:
                self.linked[key] = path
        if stat.S_ISREG(status.st_mode):
            _copy_file(entry.name, level.source, level.target, status)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(entry.name, dir_fd=level.source), entry.name, dir_fd=level.target)
            os.chown(entry.name, status.st_uid, status.st_gid, dir_fd=level.target, follow_symlinks=False)
        else:
            os.mknod(entry.name, stat.S_IFMT(status.st_mode), status.st_rdev, dir_fd=level.target)
            os.chown(entry.name, status.st_uid, status.st_gid, dir_fd=level.target, follow_symlinks=False)
            os.chmod(entry.name, stat.S_IMODE(status.st_mode), dir_fd=level.target)


def _copy_file(name: str, source_directory: int, target_directory: int, status: os.stat_result) -> None:
    source = os.open(name, _SOURCE, dir_fd=source_directory)
    try:
        target = os.open(name, _TARGET, 0o600, dir_fd=target_directory)
        try:
            _copy_content(source, target, status.st_size)
            _copy_attributes(source, target, status)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_content(source: int, target: int, size: int) -> None:
    """Copy by reference if the file system can, and keep holes: a file of a few bytes may be a terabyte long."""
    os.ftruncate(target, size)
    end = 0
    while end < size:
        try:
            begin = os.lseek(source, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # the rest is a hole
                return
            raise
        end = min(size, os.lseek(source, begin, os.SEEK_HOLE))
        os.lseek(source, begin, os.SEEK_SET)
        os.lseek(target, begin, os.SEEK_SET)
        _copy_data(source, target, end - begin)


def _copy_data(source: int, target: int, size: int) -> None:
    try:
        while size and (copied := os.copy_file_range(source, target, min(size, _CHUNK))):
            size -= copied
    except OSError as error:
        if error.errno not in _OTHER_WAYS:
            raise
    while size > 0 and (copied := os.sendfile(target, source, None, min(size, _CHUNK))):  # at their offsets
        size -= copied


def _copy_attributes(source: int, target: int, status: os.stat_result) -> None:
    """Copy owner, mode, attributes and times. The owner comes first: changing it clears modes and capabilities."""
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        if not name.startswith(_NOT_COPIED):
            with contextlib.suppress(OSError):  # not supported by the file system
                os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
