"""Finds who listens on the port that a program could not have.

The port is in the program's last words, or it is a number in its command that somebody listens on, or one that the pod
declares, or the only one that is taken in the pod's network. If that is not one port, nothing is said.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

TAKEN: Final = re.compile(r"(?i)address (is )?(already )?in use|EADDRINUSE|port \d+ is (already )?in use")
_SOCKET_FILE: Final = re.compile(r"(?i)\bunix\b|\.sock\b")
_TIME: Final = re.compile(r"(?<![\d.])\d{1,2}:\d\d(?!\d)(:\d\d)?")
_IN_WORDS: Final = re.compile(r"(?i)(?::|\bport\W{1,3}|', )(\d{1,5})(?![\w.]|:\d)")
_IN_COMMAND: Final = re.compile(r"(?<![\w.-])(\d{1,5})(?![\w.])")
_ID: Final = re.compile("[0-9a-f]{64}")
_STATES: Final = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}  # that of a socket which waits for peers
_TABLE_BYTES: Final = 1 << 20  # listening sockets are first in the kernel's tables
_SECONDS: Final = 0.8


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that listens; `ids` are what its cgroups' names may be: ids of containers, the outermost first.

    `guessed`: nothing names the port, but it is the only one that is taken.
    """

    port: int
    guessed: bool
    pid: int
    name: str
    ids: tuple[str, ...]


def holder(
    words: str, command: Sequence[str], declared: Iterable[int], process: int | str, namespace: str
) -> Holder | None:
    """Return who has the port; None if that is not clear.

    `process` is one in the network namespace in question, or "self"; the path `namespace`, if any, names that too.
    """
    lines = [line for line in words.split("\n") if TAKEN.search(line)]
    if not lines or any(map(_SOCKET_FILE.search, lines)):
        return None
    end = time.monotonic() + _SECONDS
    with contextlib.suppress(OSError, TimeoutError):
        network = os.stat(f"/proc/{process}/ns/net")
        if namespace and not os.path.samestat(network, os.stat(namespace)):
            return None  # it has ended, and another process has its pid
        listening = _listening(Path(f"/proc/{process}/net"))
        named = (
            {int(one) for line in lines for one in _IN_WORDS.findall(_TIME.sub("", line))},
            {int(one) for word in command for one in _IN_COMMAND.findall(word)},
            set(declared),
        )
        taken = next(filter(None, (one & listening.keys() for one in named)), set())
        guessed = not taken and bool(namespace)
        if len(taken := set(listening) if guessed else taken) == 1:
            (port,) = taken
            return _holder(port, listening[port], network, end, guessed=guessed)
    return None


def _listening(directory: Path) -> dict[int, set[str]]:
    """Return the links (in /proc/PID/fd) of the sockets that listen, by port."""
    found: dict[int, set[str]] = {}
    for table, state in _STATES.items():
        try:
            with open(directory / table, "rb") as file:
                lines = file.read(_TABLE_BYTES).decode(errors="replace").splitlines()
        except OSError:
            continue  # no IPv6
        for line in lines[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == state:
                found.setdefault(int(fields[1].rpartition(":")[2], 16), set()).add(f"socket:[{fields[9]}]")
    return found


def _holder(
    port: int, sockets: set[str], network: os.stat_result, end: float, *, guessed: bool
) -> Holder | None:
    """Return the oldest process with one of the sockets. Raises TimeoutError."""
    oldest: tuple[int, int] | None = None
    for pid in _processes(network, end):
        if _has(pid, sockets, end):
            oldest = min(filter(None, (oldest, (_begun(pid), pid))))
    if oldest is None:
        return None
    pid = oldest[1]
    name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    cgroups = Path(f"/proc/{pid}/cgroup").read_text(errors="replace")
    return Holder(port, guessed, pid, name, ids_of(cgroups))


def _processes(network: os.stat_result, end: float) -> Iterator[int]:
    """Yield the processes in the network namespace."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        _check(end)
        with contextlib.suppress(OSError):  # it has ended
            if os.path.samestat(os.stat(f"/proc/{name}/ns/net"), network):
                yield int(name)


def _has(pid: int, sockets: set[str], end: float) -> bool:
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for number, name in enumerate(names):
        if not number % 256:
            _check(end)
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{name}") in sockets:
                return True
    return False


def _begun(pid: int) -> int:
    """Return when the process began, in clock ticks (proc(5), stat)."""
    return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19])


def _check(end: float) -> None:
    if time.monotonic() > end:
        raise TimeoutError


def ids_of(cgroups: str) -> tuple[str, ...]:
    """Return what may be ids of containers in the names of cgroups, the outermost first."""
    return tuple(_ID.findall(cgroups))


def first_known(ids: Iterable[str], known: Container[str]) -> str:
    """Return the first of `ids` that is among `known`; "" if none is.

    A container may make cgroups within its own, and name them for others: the outermost is its own.
    """
    return next(islice((one for one in ids if one in known), 1), "")
