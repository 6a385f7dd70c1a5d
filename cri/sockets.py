"""Unix sockets that only root may open, at paths where an earlier daemon, or another program, may have one."""

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
    """Where a socket is made, and removed as long as it is that one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made = (0, 0)

    def clear(self) -> None:
        """Make the directory, and remove the socket of a daemon that is dead.

        Raises StartupError when anything else has the path, OSError when that cannot be done.
        """
        path = self.path
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

    @contextmanager
    def making(self) -> Iterator[None]:
        """Around the making of the socket, which gets the mode 0600. Raises OSError when there is none afterwards."""
        umask = os.umask(_ONLY_OWNER)
        try:
            yield
            self._made = self._identity()
        finally:
            os.umask(umask)

    def remove(self) -> None:
        """Remove the socket that was made; one that another process put in its place stays."""
        with suppress(OSError):
            if self._identity() == self._made:
                self.path.unlink()

    def _identity(self) -> tuple[int, int]:
        status = self.path.lstat()
        return status.st_dev, status.st_ino


@contextmanager
def bound(server: grpc.aio.Server, path: Path) -> Iterator[None]:
    """Bind `server` to a unix socket that only root may open; the socket is gone afterwards.

    Raises StartupError when something else is at `path`, or answers there, or the socket cannot be made.
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
