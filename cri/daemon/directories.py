"""Locks the directories that one daemon must have for itself."""

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
    """Lock `directory` for this daemon; make it with `mode` if it is missing.

    Raises StartupError if it cannot be made or written, or another daemon has locked it.
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
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        reason = f"another crispd (pid {owner or 'unknown'}) uses it"
        raise StartupError(f"use directory {directory}: {reason}") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
