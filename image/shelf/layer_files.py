"""The directories of layers on disk: their names, their making, and what brings them to the disk. Blocking I/O."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from image.errors import ImageError, StorageFull
from linux import syscalls

_BLOB_SUFFIX = ".blob"
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def blob_of(directory: Path) -> Path:
    """Where the blob of the layer unpacked into `directory` is, if it is kept."""
    return directory.with_name(f"{directory.name}{_BLOB_SUFFIX}")


def make_layer_directory(path: Path) -> None:
    """Make the empty directory that a layer is unpacked into. Raises StorageFull, ImageError."""
    with explained(f"make {path}"):
        os.mkdir(path)
        os.chmod(path, 0o755)


def base36(number: int) -> str:
    """The name of the layer with that number."""
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits or "0"


def sync_directory(path: Path) -> None:
    """fsync(2): the names in it are on the disk. Raises OSError."""
    with opened(path) as descriptor:
        os.fsync(descriptor)


def sync_filesystem(path: Path) -> None:
    """syncfs(2): everything written to the filesystem of `path` is on the disk, or OSError says that it is not."""
    with opened(path) as descriptor:
        try:
            syscalls.syncfs(descriptor)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of a directory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Raise StorageFull or ImageError, saying `what` was tried, for an OSError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"{what}: no space left") from error
        raise ImageError(f"{what}: {error.strerror}") from error
