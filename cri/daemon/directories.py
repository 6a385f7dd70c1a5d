"""Directories that one daemon has to itself, by a lock in them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cri.errors import StartupError

_LOCK = "crispd.lock"


@contextmanager
def occupied(directory: Path, mode: int) -> Iterator[None]:
    """Keep `directory` to this daemon, making it with `mode` when missing.

    Raises StartupError when it cannot be made or written, or when another daemon has it.
    """
    lock = directory / _LOCK
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=mode, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartupError(f"use directory {directory}: {error.strerror}") from error
    try:
        _lock(descriptor, directory)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        raise StartupError(f"use directory {directory}: another crispd (pid {holder or 'unknown'}) has it") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
