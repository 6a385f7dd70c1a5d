"""Reads the counters of a pod's network interfaces from /proc/<pid>/net/dev of a process in its network namespace."""

from __future__ import annotations

import os
from dataclasses import dataclass

DEFAULT = "eth0"  # the name CNI gives to the first attachment of a pod


@dataclass(frozen=True, slots=True)
class Interface:
    """Counters since the interface was made."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


def parse(text: str) -> tuple[Interface, ...]:
    """Parse a net/dev file (proc_net(5)). Leaves loopback out; the default interface is first."""
    found = []
    for line in text.splitlines()[2:]:
        name, _, counts = line.strip().rpartition(":")
        if name == "lo":
            continue
        numbers = [int(number) for number in counts.split()]
        found.append(Interface(name, *numbers[:4], *numbers[8:12]))
    return tuple(sorted(found, key=lambda interface: interface.name != DEFAULT))


def interfaces(pid: int, netns: str, proc: str = "/proc") -> tuple[Interface, ...]:
    """Return the interfaces of the namespace pinned at `netns`, read through process `pid`; () if it left or died."""
    try:
        with open(f"{proc}/{pid}/net/dev", "rb", buffering=0) as file:
            text = file.readall().decode()
        # Checked after the reading: if the pid was reused meanwhile, its namespace differs.
        within, pinned = os.stat(f"{proc}/{pid}/ns/net"), os.stat(netns)
    except OSError:
        return ()
    return parse(text) if (within.st_dev, within.st_ino) == (pinned.st_dev, pinned.st_ino) else ()
