"""Puts a pod's addresses back on its interfaces, if a sandbox with a network stack of its own (gVisor) took them over.

Plugins look for them in DEL: without them, the bridge plugin leaves its rules for masquerading.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from linux import syscalls

# netdevice(7), linux/sockios.h
_SIOCSIFADDR: Final = 0x8916
_SIOCSIFNETMASK: Final = 0x891C
_SIOCGIFADDR: Final = 0x8915

Address = ipaddress.IPv4Interface | ipaddress.IPv6Interface


def put_back(netns: str, result: dict[str, Any], ifname: str) -> None:
    """Give the interfaces in a network namespace the addresses in the result of ADD that they lack. Best effort."""
    wanted = list(_addresses(result, ifname))

    def inside() -> None:
        with contextlib.suppress(OSError):
            descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
            try:
                syscalls.setns(descriptor, syscalls.CLONE_NEWNET)
            finally:
                os.close(descriptor)
            for name, address in wanted:
                with contextlib.suppress(OSError):  # the interface is gone
                    _give(name, address)

    thread = threading.Thread(target=inside, name="network namespace")  # it stays in the namespace, so it ends
    thread.start()
    thread.join()


def _addresses(result: dict[str, Any], ifname: str) -> Iterator[tuple[str, Address]]:
    interfaces = result.get("interfaces") or []
    for entry in result.get("ips") or []:
        number = entry.get("interface")
        name = interfaces[number].get("name") if number is not None and number < len(interfaces) else ifname
        with contextlib.suppress(ValueError):
            yield name or ifname, ipaddress.ip_interface(entry.get("address", ""))


def _give(name: str, address: Address) -> None:
    if address.version == 6:
        _give_v6(name, address)
        return
    request = struct.Struct("16sHH4s8x")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        with contextlib.suppress(OSError):  # EADDRNOTAVAIL: it has none
            fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("16s24x", name.encode()))
            return
        for call, value in ((_SIOCSIFADDR, address.ip), (_SIOCSIFNETMASK, address.netmask)):
            fcntl.ioctl(probe, call, request.pack(name.encode(), socket.AF_INET, 0, value.packed))


def _give_v6(name: str, address: Address) -> None:
    index = socket.if_nametoindex(name)
    there = Path("/proc/thread-self/net/if_inet6").read_text().split()
    if address.ip.packed.hex() in there:
        return
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, _SIOCSIFADDR, struct.pack("=16sIi", address.ip.packed, address.network.prefixlen, index))
