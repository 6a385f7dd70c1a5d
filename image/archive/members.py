"""Archives as named members: a directory or a tar. Blocking I/O."""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
from pathlib import Path
from typing import Protocol

from image.errors import InvalidImage
from image.unpack.walk import open_beneath

_MEMBER_LIMIT = 100_000
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # gzip, zstd
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}


class Archive(Protocol):
    """A set of named members."""

    path: Path

    def has(self, member: str) -> bool: ...

    def size(self, member: str) -> int: ...

    def open(self, member: str) -> int:
        """Return a new descriptor at the member's first byte. Raises InvalidImage if it does not exist."""

    def close(self) -> None: ...


class _Directory:
    """A directory. Its documents name members, which must be inside it, whatever links there are."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._root = descriptor

    def has(self, member: str) -> bool:
        try:
            os.close(self.open(member))
        except InvalidImage:
            return False
        return True

    def size(self, member: str) -> int:
        descriptor = self.open(member)
        try:
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def open(self, member: str) -> int:
        try:
            descriptor = open_beneath(self._root, os.fsencode(member))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise InvalidImage(f"read {self.path}: {member}: {reason}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise InvalidImage(f"read {self.path}: {member}: not a regular file")
        return descriptor

    def close(self) -> None:
        os.close(self._root)


class _Tar:
    """The tar in the open file `descriptor`; `path` is its name in errors."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._file = open(descriptor, "rb")  # noqa: SIM115 (closed by close)
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            self._read()
        except (tarfile.TarError, EOFError) as error:
            self.close()
            raise InvalidImage(f"read {path}: not a tar archive: {error}") from error
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        with tarfile.open(fileobj=self._file, mode="r:") as tar:
            for count, member in enumerate(tar):
                if count == _MEMBER_LIMIT:
                    raise InvalidImage(f"read {self.path}: more than {_MEMBER_LIMIT} members")
                self._members[posixpath.normpath(member.name)] = member

    def has(self, member: str) -> bool:
        return member in self._members

    def size(self, member: str) -> int:
        return self._member(member).size

    def open(self, member: str) -> int:
        found = self._member(member)
        # A new open file, because it has its own position; the file may have no name any more.
        descriptor = os.open(f"/proc/self/fd/{self._file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
        os.lseek(descriptor, found.offset_data, os.SEEK_SET)
        return descriptor

    def close(self) -> None:
        self._file.close()

    def _member(self, name: str) -> tarfile.TarInfo:
        """Find the regular file `name`, through one link: old `docker save` links layers that images share."""
        member = self._members.get(posixpath.normpath(name))
        if member is not None and member.issym():
            member = self._members.get(posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname)))
        elif member is not None and member.islnk():
            member = self._members.get(posixpath.normpath(member.linkname))
        if member is None or not member.isreg() or member.issparse():
            raise InvalidImage(f"read {self.path}: it has no regular file {name}")
        return member


def open_file(path: Path) -> int:
    """Open the archive at `path` for `open_archive`. Raises InvalidImage if it is neither file nor directory."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidImage(f"read {path}: {error.strerror}") from error
    if stat.S_IFMT(os.fstat(descriptor).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
        os.close(descriptor)
        raise InvalidImage(f"read {path}: neither a file nor a directory")
    return descriptor


def is_compressed(descriptor: int) -> bool:
    """Return whether it is a file compressed with gzip or zstd."""
    return stat.S_ISREG(os.fstat(descriptor).st_mode) and os.pread(descriptor, 4, 0).startswith(_COMPRESSED)


def open_archive(path: Path, descriptor: int) -> Archive:
    """Return the archive in the open `descriptor`, which it closes; `path` is its name in errors.

    Raises InvalidImage if it is none.
    """
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        return _Directory(path, descriptor)
    beginning = os.pread(descriptor, 8, 0)
    if other := next((name for magic, name in _OTHERS.items() if beginning.startswith(magic)), ""):
        os.close(descriptor)
        raise InvalidImage(f"read {path}: it is compressed with {other}; decompress it, or use gzip or zstd")
    return _Tar(path, descriptor)
