"""Implements `socket` on the interpreter's C module: `socket` itself imports `selectors` and `enum`."""

# Type checkers see `socket` (see runtime.light).
# mypy: ignore-errors

from __future__ import annotations

import _socket
import sys
from _socket import *  # noqa: F403  (all constants)
from _socket import AF_UNIX, CMSG_LEN, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET

_INT = 4
_ORDER = sys.byteorder


class socket(_socket.socket):
    __slots__ = ()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def accept(self):
        fd, address = self._accept()
        return socket(fileno=fd), address


def socketpair(family=AF_UNIX, kind=SOCK_STREAM):
    one, other = _socket.socketpair(family, kind)
    return socket(fileno=one.detach()), socket(fileno=other.detach())


def send_fds(sock, buffers, fds, flags=0):
    """Send like socket.send_fds, which ignores the flags."""
    payload = b"".join(fd.to_bytes(_INT, _ORDER) for fd in fds)
    return sock.sendmsg(buffers, [(SOL_SOCKET, SCM_RIGHTS, payload)], flags)


def recv_fds(sock, size, most, flags=0):
    """Receive like socket.recv_fds."""
    data, ancillary, flags, address = sock.recvmsg(size, CMSG_LEN(most * _INT), flags)
    fds = []
    for level, kind, payload in ancillary:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            fds += [int.from_bytes(payload[at : at + _INT], _ORDER) for at in range(0, len(payload) - _INT + 1, _INT)]
    return data, fds, flags, address
