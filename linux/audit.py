"""Reads seccomp's records from the kernel's audit subsystem (netlink), beside auditd or without it."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Final

_NETLINK_AUDIT: Final = 9
_READLOG: Final = 1  # the multicast group of all records; needs CAP_AUDIT_READ
_SECCOMP: Final = 1326
_GET, _REQUEST = 1000, 1
_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr
_LOST_AT: Final = 6 * 4  # in struct audit_status
_BUFFER: Final = 1 << 20
_SO_ATTACH_FILTER: Final = 26
_INITIAL_PIDS: Final = 0xEFFFFFFC  # the inode of the initial PID namespace
_FIELDS: Final = re.compile(rb' (pid|comm|sig|arch|syscall|code)=("[^"]*"|[0-9a-fA-Fx]+)')


@dataclass(frozen=True, slots=True)
class SeccompRecord:
    """One call that a filter logged. `action` is seccomp's return value without its data; `pid` is the host's."""

    pid: int
    program: str
    arch: int
    number: int
    action: int
    signal: int


def why_unreadable() -> str:
    """Return why this process gets no records; "" if it should get them."""
    if os.stat("/proc/self/ns/pid").st_ino != _INITIAL_PIDS:
        return "crispd runs in a PID namespace of its own, and audit names processes by the host's numbers"
    try:
        if os.stat("/proc/1/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino:
            return "crispd runs in a network namespace of its own, and audit sends records to the host's"
    except OSError:
        pass  # some machines hide it; then nothing can be told
    return ""


def listen() -> socket.socket:
    """Return a non-blocking socket that receives seccomp's records only. Raises OSError."""
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    listening = socket.socket(socket.AF_NETLINK, kind, _NETLINK_AUDIT)
    try:
        wanted = int.from_bytes(_SECCOMP.to_bytes(2, sys.byteorder), "big")  # BPF loads in network order
        rules = ((0x28, 0, 0, 4), (0x15, 0, 1, wanted), (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0))
        program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *rule) for rule in rules))
        attached = struct.pack("@HP", len(rules), ctypes.addressof(program))
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, attached)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        listening.bind((0, _READLOG))
    except OSError:
        listening.close()
        raise
    return listening


def receive(listening: socket.socket) -> SeccompRecord | None:
    """Receive one record; None for another one. Raises OSError: BlockingIOError if none waits, ENOBUFS after a loss."""
    return parse(listening.recv(1 << 16))


def parse(message: bytes) -> SeccompRecord | None:
    """Parse a netlink message of audit."""
    if len(message) < _HEADER.size or _HEADER.unpack_from(message)[1] != _SECCOMP:
        return None
    fields = dict(_FIELDS.findall(message[_HEADER.size :]))
    try:
        return SeccompRecord(
            pid=int(fields[b"pid"]),
            program=_text(fields[b"comm"]),
            arch=int(fields[b"arch"], 16),
            number=int(fields[b"syscall"]),
            action=int(fields[b"code"], 16) & 0xFFFF0000,
            signal=int(fields[b"sig"]),
        )
    except (KeyError, ValueError):
        return None


def lost() -> int:
    """Return how many records the kernel has dropped since it booted. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_AUDIT) as asking:
        asking.settimeout(1.0)
        asking.send(_HEADER.pack(_HEADER.size, _GET, _REQUEST, 1, 0))
        answer = asking.recv(1 << 16)
    if _HEADER.unpack_from(answer)[1] != _GET:  # NLMSG_ERROR
        number = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        raise OSError(number, os.strerror(number))
    return int(struct.unpack_from("=I", answer, _HEADER.size + _LOST_AT)[0])


def _text(value: bytes) -> str:
    """Decode a field: quoted, or in hexadecimal if it has unusual characters."""
    if value.startswith(b'"'):
        return value.strip(b'"').decode(errors="replace")
    return bytes.fromhex(value.decode()).decode(errors="replace")
