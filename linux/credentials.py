"""Who is at the other end of a unix socket (unix(7))."""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket
    from typing import Final

_SOL_SOCKET: Final = 1
_SO_PEERCRED: Final = 17
UCRED: Final = struct.Struct("iII")  # pid, uid, gid


def peer_pid(sock: socket) -> int:
    """Return the process that has connected or made the other end."""
    pid, _uid, _gid = UCRED.unpack(sock.getsockopt(_SOL_SOCKET, _SO_PEERCRED, UCRED.size))
    return int(pid)
