"""A shim that was forked ahead, for a pod that nobody has asked for yet."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from typing import Final

from linux.credentials import UCRED
from runtime.wire.calls import Shutdown
from runtime.wire.frames import encode

_ANSWER: Final = 4096
_SECONDS: Final = 5.0  # for a shim to end that somebody may have stopped


class Spare:
    """The connection to it. It has no pod, so it ends with the connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def take(self) -> socket.socket | None:
        """Return the connection if the shim lives, for a pod. Else close it."""
        try:
            self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return self._connection
        except OSError:
            pass
        self._connection.close()
        return None

    def drop(self) -> None:
        """Let it end."""
        self._connection.close()

    def end(self) -> None:
        """Let it end, and wait until it is no member of its cgroup any more. Blocks."""
        with self._connection as connection, contextlib.suppress(OSError):
            connection.settimeout(_SECONDS)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            connection.sendall(encode({"id": 1, "call": Shutdown.call}))
            _answer, control, _flags, _address = connection.recvmsg(_ANSWER, socket.CMSG_SPACE(UCRED.size))
            for _level, kind, content in control:
                if kind == socket.SCM_CREDENTIALS:
                    _wait_for(UCRED.unpack(content)[0])


def _wait_for(pid: int) -> None:
    """Return when the process has ended. Raises OSError."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(_SECONDS * 1000)
    finally:
        os.close(pidfd)
