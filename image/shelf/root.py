"""A store's root directory: its subdirectories, its lock, and files that no record names."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

from image.errors import ImageError, StorageFull

_LOCK_WAIT = 10.0  # seconds: the workers of a killed daemon hold the lock until they notice its death
_LOCK_STEP = 0.05  # seconds
_EMPTY = "0"
_GARBAGE = "garbage"
_OWN_FILES = ("images.db", "images.db-wal", "images.db-shm", "lock")
_OWN_DIRECTORIES = 7  # the root, garbage, layers, layers/0, partial, profiles, tmp


class StoreRoot:
    """The locked directory of one store. Blocking I/O."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> StoreRoot:
        """Create missing directories, and lock the store. Raises StorageFull, ImageError (also if it is locked)."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o700)  # the host's users must not run setuid programs of images
            for name in ("tmp", "partial", "layers", f"layers/{_EMPTY}"):
                (path / name).mkdir(exist_ok=True)
            (path / "layers" / _EMPTY).chmod(0o755)
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else ImageError
            raise kind(f"open image store {path}: {error.strerror}") from error
        try:
            _take(lock, path)
        except BaseException:
            os.close(lock)
            raise
        return cls(path, lock)

    def close(self) -> None:
        os.close(self._lock)

    @property
    def inherited(self) -> tuple[int, ...]:
        """Return the descriptors that workers inherit: a worker that outlives the daemon keeps the store locked."""
        return (self._lock,)

    @property
    def empty_layer(self) -> Path:
        return self.path / "layers" / _EMPTY

    def layer_names(self) -> frozenset[str]:
        return frozenset(os.listdir(self.path / "layers"))

    def garbage(self, known: Container[str]) -> list[Path]:
        """Return the directories of unfinished layers, of layers that no record names, and what was set aside."""
        return self._unwanted(known) + self.aside()

    def aside(self) -> list[Path]:
        """Return what was ever set aside and is there yet."""
        aside = self.path / _GARBAGE
        return list(aside.iterdir()) if aside.is_dir() else []

    def set_aside(self, known: Container[str]) -> list[Path]:
        """Move what `garbage` returns aside, because new layers may get the names. Returns what could not be moved."""
        aside = self.path / _GARBAGE
        with suppress(OSError):  # the disk may be full
            aside.mkdir(exist_ok=True)
        in_the_way = []
        for path in self._unwanted(known):
            try:
                path.rename(aside / secrets.token_hex(8))
            except OSError:
                in_the_way.append(path)
        return in_the_way

    def _unwanted(self, known: Container[str]) -> list[Path]:
        unfinished = list((self.path / "tmp").iterdir())
        unknown = [path for path in (self.path / "layers").iterdir() if path.stem not in known and path.name != _EMPTY]
        return unfinished + unknown

    def own_usage(self) -> tuple[int, int]:
        """Return the bytes and inodes of everything except the layers."""
        size = inodes = 0
        found = [path for name in ("partial", "profiles") for path in (self.path / name).glob("*")]
        for path in (*(self.path / name for name in _OWN_FILES), *found):
            with suppress(FileNotFoundError):
                size += path.stat().st_blocks * 512
                inodes += 1
        return size, inodes + _OWN_DIRECTORIES


def _take(lock: int, path: Path) -> None:
    deadline = time.monotonic() + _LOCK_WAIT
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ImageError(f"open image store {path}: another daemon has it: stop that one") from None
            time.sleep(_LOCK_STEP)
