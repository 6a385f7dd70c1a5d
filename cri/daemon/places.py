"""What crispd needs of the machine before it serves: its directories to itself, its socket, descriptors."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc.aio

from cri.errors import StartupError

_LOCK = "crispd.lock"
_SOCKET_UMASK = 0o177


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one, which it returns."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


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


@contextmanager
def bound(server: grpc.aio.Server, path: Path) -> Iterator[None]:
    """Bind `server` to a unix socket that only root may open; the socket is gone afterwards.

    Raises StartupError when something else is at `path`, or answers there, or the socket cannot be made.
    """
    clear_socket(path)
    umask = os.umask(_SOCKET_UMASK)
    try:
        server.add_insecure_port(f"unix:{path}")
        made = identity(path)
    except (OSError, RuntimeError) as error:
        raise StartupError(f"listen on {path}: {error}") from error
    finally:
        os.umask(umask)
    try:
        yield
    finally:
        remove_socket(path, made)


def identity(path: Path) -> tuple[int, int]:
    """What tells the socket that is at `path` now from any that others put there. Raises OSError."""
    status = path.lstat()
    return status.st_dev, status.st_ino


def remove_socket(path: Path, made: tuple[int, int]) -> None:
    """Remove the socket that was `made` at `path`; one that another process put in its place stays."""
    with suppress(OSError):
        if identity(path) == made:
            path.unlink()


def clear_socket(path: Path) -> None:
    """Remove the socket of a daemon that is dead. Raises StartupError when anything else has the path."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True)
    if not path.exists():
        return
    if not path.is_socket():
        raise StartupError(f"listen on {path}: the path is taken by something that is not a socket")
    with socket.socket(socket.AF_UNIX) as attempt:
        try:
            attempt.connect(os.fspath(path))
        except OSError:
            path.unlink()
            return
    raise StartupError(f"listen on {path}: another process answers on that socket")
