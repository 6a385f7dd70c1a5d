"""Unix sockets for root only, at paths where an earlier daemon or another program may have left one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cri.errors import StartupError

if TYPE_CHECKING:
    import grpc.aio

_ONLY_OWNER = 0o177  # as a umask


class SocketPath:
    """A path at which a socket is made. It is removed only if it is still the same socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made = (0, 0)

    def clear(self) -> None:
        """Make the directory, and remove the socket of a dead daemon.

        Raises StartupError if the path is in use or is no socket, OSError.
        """
        path = self.path
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
        if not path.exists():
            return
        if not path.is_socket():
            raise StartupError(f"listen on {path}: there is a file that is not a socket: remove it")
        with socket.socket(socket.AF_UNIX) as attempt:
            try:
                attempt.connect(os.fspath(path))
            except OSError:
                path.unlink()
                return
        raise StartupError(f"listen on {path}: another process listens on that socket: stop it, or use another path")

    @contextmanager
    def making(self) -> Iterator[None]:
        """Wrap the creation of the socket, which gets mode 0600. Raises OSError if there is no socket afterwards."""
        umask = os.umask(_ONLY_OWNER)
        try:
            yield
            self._made = self._identity()
        finally:
            os.umask(umask)

    def remove(self) -> None:
        """Remove the socket, unless another process has replaced it."""
        with suppress(OSError):
            if self._identity() == self._made:
                self.path.unlink()

    def _identity(self) -> tuple[int, int]:
        status = self.path.lstat()
        return status.st_dev, status.st_ino


@contextmanager
def bound(server: grpc.aio.Server, path: Path) -> Iterator[None]:
    """Bind `server` to a unix socket for root only; remove the socket afterwards.

    Raises StartupError if `path` is in use or is no socket, or the socket cannot be made.
    """
    place = SocketPath(path)
    place.clear()
    try:
        with place.making():
            server.add_insecure_port(f"unix:{path}")
    except (OSError, RuntimeError) as error:
        raise StartupError(f"listen on {path}: {error}") from error
    try:
        yield
    finally:
        place.remove()
