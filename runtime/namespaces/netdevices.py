"""Moves host interfaces into a container's network namespace (config-linux.md "Network Devices").

The move takes an interface down and removes its addresses. Its permanent addresses of global scope are added again, and
it is brought up.
"""

from __future__ import annotations

import errno
import os
import struct

from runtime.errors import OperationFailed, failing
from runtime.light import socket
from runtime.spec.values import NetDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Final

_NETLINK_ROUTE: Final = 0
_RTM_NEWLINK, _RTM_GETLINK, _RTM_NEWADDR, _RTM_GETADDR = 16, 18, 20, 22
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP, _CREATE, _EXCL = 0x1, 0x4, 0x300, 0x400, 0x200
_IFLA_IFNAME, _IFLA_NET_NS_FD = 3, 28
_IFF_UP: Final = 1
_IFA_F_PERMANENT: Final = 0x80
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_KEPT: Final = frozenset({_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST})
_GLOBAL: Final = 0  # RT_SCOPE_UNIVERSE
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_LINK: Final = struct.Struct("=BxHiII")  # struct ifinfomsg
_ADDRESS: Final = struct.Struct("=BBBBI")  # struct ifaddrmsg
_ATTRIBUTE: Final = struct.Struct("=HH")
_LONGEST: Final = 65536


def open_links() -> int:
    """Return a descriptor that can move interfaces of the caller's network namespace from any other."""
    with failing("open", "rtnetlink"):
        return _socket().detach()


def move_here(links: int, devices: Mapping[str, NetDevice]) -> None:
    """Move interfaces from the namespace of `open_links` to the caller's, which has the host's /proc. Closes `links`.

    Raises OperationFailed, which names the member. Interfaces moved before that go back to the host when the namespace
    ends.
    """
    here = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with socket.socket(fileno=links) as there, _socket() as inside:
            for name, device in devices.items():
                with failing("move linux.netDevices", name):
                    _move(there, inside, name, device.name or name, here)
    finally:
        os.close(here)


def _move(there: socket.socket, inside: socket.socket, name: str, new_name: str, namespace: int) -> None:
    index = _index(there, name)
    addresses = [data for data in _dump_addresses(there) if _is_kept(data, index)]
    attributes = _attribute(_IFLA_NET_NS_FD, struct.pack("=I", namespace)) + _attribute(_IFLA_IFNAME, _text(new_name))
    _ask(there, _RTM_NEWLINK, 0, _LINK.pack(0, 0, index, 0, 0) + attributes)
    index = _index(inside, new_name)
    for data in addresses:
        family, length, flags, scope, _old = _ADDRESS.unpack_from(data)
        kept = b"".join(_attribute(kind, value) for kind, value in _attributes(data, _ADDRESS.size) if kind in _KEPT)
        message = _ADDRESS.pack(family, length, flags & ~_IFA_F_PERMANENT, scope, index) + kept
        _ask(inside, _RTM_NEWADDR, _CREATE | _EXCL, message)
    _ask(inside, _RTM_NEWLINK, 0, _LINK.pack(0, 0, index, _IFF_UP, _IFF_UP))


def _index(connection: socket.socket, name: str) -> int:
    (found,) = _ask(connection, _RTM_GETLINK, 0, _LINK.pack(0, 0, 0, 0, 0) + _attribute(_IFLA_IFNAME, _text(name)))
    return int(_LINK.unpack_from(found)[2])


def _dump_addresses(connection: socket.socket) -> Iterator[bytes]:
    yield from _ask(connection, _RTM_GETADDR, _DUMP, _ADDRESS.pack(0, 0, 0, 0, 0))


def _is_kept(data: bytes, index: int) -> bool:
    _family, _length, flags, scope, of = _ADDRESS.unpack_from(data)
    for kind, value in _attributes(data, _ADDRESS.size):
        if kind == _IFA_FLAGS:
            (flags,) = struct.unpack("=I", value)
    return of == index and scope == _GLOBAL and bool(flags & _IFA_F_PERMANENT)


def _socket() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE)


def _ask(connection: socket.socket, kind: int, flags: int, body: bytes) -> list[bytes]:
    """Send a request and return the bodies of the answers, up to the acknowledgement or a dump's end.

    Raises OSError.
    """
    dump = flags & _DUMP == _DUMP
    flags |= _REQUEST | (0 if dump else _ACK)
    connection.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
    bodies: list[bytes] = []
    while True:
        data = connection.recv(_LONGEST)
        while data:
            length, found, _flags, _number, _port = _HEADER.unpack_from(data)
            answer, data = data[_HEADER.size : length], data[-(-length // 4) * 4 :]
            if found == _NLMSG_ERROR:
                (failure,) = struct.unpack_from("=i", answer)
                if failure:
                    raise OSError(-failure, os.strerror(-failure))
                return bodies
            if found == _NLMSG_DONE:
                return bodies
            bodies.append(answer)


def _attribute(kind: int, value: bytes) -> bytes:
    whole = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
    return whole + bytes(-len(whole) % 4)


def _attributes(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            raise OperationFailed("read", "rtnetlink answer", errno.EBADMSG)
        yield kind, data[at + _ATTRIBUTE.size : at + length]
        at += -(-length // 4) * 4


def _text(name: str) -> bytes:
    return os.fsencode(name) + b"\0"
