"""Names, creates and syncs the directories of layers. Blocking I/O."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from image.erofs.mount import INDEX, TAR
from image.errors import ImageError, StorageFull
from linux import syscalls, trees

_BLOB_SUFFIX = ".blob"
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def blob_of(directory: Path) -> Path:
    """Return the path of the layer's kept blob, if blobs are kept; `directory` is the layer's."""
    return directory.with_name(f"{directory.name}{_BLOB_SUFFIX}")


def make_layer_directory(path: Path) -> None:
    """Create the empty directory for unpacking a layer. Raises StorageFull, ImageError."""
    with explained(f"make {path}"):
        os.mkdir(path)
        os.chmod(path, 0o755)


def base36(number: int) -> str:
    """Return the directory name of the layer with this number."""
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits or "0"


def sync_file(path: Path) -> None:
    """fsync(2) a file: its content is on the disk afterwards. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """fsync(2) a directory: its names are on the disk afterwards. Raises OSError."""
    with opened(path) as descriptor:
        os.fsync(descriptor)


def sync_filesystem(path: Path) -> None:
    """syncfs(2) the file system of `path`: all that was written to it is on the disk afterwards. Raises OSError."""
    with opened(path) as descriptor:
        try:
            syscalls.syncfs(descriptor)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None


def remove_small(paths: Iterable[Path], seconds: float) -> list[Path]:
    """Remove files and directory trees, if they exist, for so long. Returns those that are left. Raises ImageError."""
    end = time.monotonic() + seconds
    return [path for path in paths if not _removed(path, end)]


def _removed(path: Path, end: float) -> bool:
    with explained(f"remove {path}"):
        try:
            return trees.remove_tree(os.fspath(path), lambda: time.monotonic() > end)
        except NotADirectoryError:
            with suppress(FileNotFoundError):
                os.unlink(path)
    return True


def unlink_indexed(directory: Path, held: list[int]) -> None:
    """Remove the files of an indexed layer with their directory, whichever of them exist. Raises OSError.

    Each file's descriptor is added to `held`: the file system frees the file's blocks, which takes longer than to
    remove its name, when that is closed.
    """
    for path in (directory / TAR, directory / INDEX, blob_of(directory)):
        with suppress(FileNotFoundError):
            held.append(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
            os.unlink(path)
    with suppress(FileNotFoundError):
        os.rmdir(directory)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a directory for the time of the context."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an OSError into StorageFull or ImageError, whose message begins with `what`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"{what}: no space left") from error
        raise ImageError(f"{what}: {error.strerror}") from error
