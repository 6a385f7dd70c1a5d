"""Counts the system calls that seccomp profiles deny, for each container, from the kernel's audit records.

The kernel reports killed processes and SCMP_ACT_LOG always, and calls answered with an error if the filter was loaded
with SECCOMP_FILTER_FLAG_LOG (the setting seccomp_denials). What happens to the program is the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import select
import socket
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from linux import audit
from runtime.seccomp.compile import ACTIONS, syscall_name

_log: Final = logging.getLogger("crisp.pods")
_TURN: Final = 256  # records that are counted at a time
_PIDS: Final = 4096
_CALLS: Final = 512  # names kept for each container
_CONTAINERS: Final = 4096
_ID: Final = re.compile(r"[0-9a-f]{64}")
ALLOWED: Final = "log"  # the action of a profile's SCMP_ACT_LOG: reported and allowed
_NAMES: Final = {number: name.removeprefix("SCMP_ACT_").lower() for name, number in ACTIONS.items()}


@dataclass(frozen=True, slots=True)
class Call:
    """`action`: what the filter did: "errno", "log" (allowed), "kill_process", ..."""

    name: str
    action: str


@dataclass(slots=True)
class Calls:
    """The calls of one container."""

    counts: Counter[Call] = field(default_factory=Counter)
    more: int = 0  # calls of further names


@dataclass(frozen=True, slots=True)
class DeniedIn:
    """The calls of one container; `name` is namespace/pod/container, "" if it is gone."""

    container_id: str
    name: str
    calls: Calls


class Denials:
    """Listens to audit, if it can be read. `unreadable` says why not.

    `known` tells whether a container with this id exists; `told` gets each container's first call of a name.
    """

    def __init__(self, known: Callable[[str], bool], told: Callable[[str, Call, str], None]) -> None:
        self._known = known
        self._told = told
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._stop = -1
        self._pids: OrderedDict[int, str] = OrderedDict()  # processes may have ended when their record is read
        self._calls: OrderedDict[str, Calls] = OrderedDict()
        self.unreadable = "not listening"
        self.missed = 0  # how often records were lost because crispd was too slow

    def open(self) -> None:
        """Begin to listen. What is heard is counted on the running loop."""
        self.unreadable = audit.why_unreadable()
        if self.unreadable:
            return
        try:
            self._socket = audit.listen()
        except OSError as error:
            self.unreadable = f"listen to audit: {error.strerror}"
            return
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # A thread: the loop may be busy, and the process soon gone. The kernel names no container, only a process.
        arguments = (asyncio.get_running_loop(), self._socket, self._stop)
        self._thread = threading.Thread(target=self._listen, args=arguments, name="denials", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        if self._socket is not None and self._thread is not None:
            os.eventfd_write(self._stop, 1)
            self._thread.join()
            self._socket.close()
            os.close(self._stop)
            self._socket = None

    def of(self, container_id: str) -> Calls:
        """Return the calls of a container; of "", those of processes that had ended before they were looked at."""
        return self._calls.get(container_id) or Calls()

    @property
    def lost(self) -> int:
        """Return how many records the kernel dropped, and how often crispd was too slow. Raises OSError."""
        return audit.lost() + self.missed

    def containers(self) -> list[str]:
        """Return the ids of containers with calls."""
        return list(self._calls)

    def _listen(self, loop: asyncio.AbstractEventLoop, listening: socket.socket, stop: int) -> None:
        """In the thread: read records, with the cgroups of their processes."""
        waiting = select.poll()
        for descriptor in (listening.fileno(), stop):
            waiting.register(descriptor, select.POLLIN)
        while not any(descriptor == stop for descriptor, _events in waiting.poll()):
            batch: list[tuple[audit.SeccompRecord, str | None]] = []
            try:
                while len(batch) < _TURN:
                    if (record := audit.receive(listening)) is not None:
                        batch.append((record, _cgroups_of(record.pid)))
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    self.unreadable = f"read audit: {error.strerror}"
                    _log.warning("reading audit failed; denied calls are not counted any more", extra={"error": error})
                    return
                self.missed += 1
            with contextlib.suppress(RuntimeError):  # crispd is ending
                loop.call_soon_threadsafe(self._take_all, batch)

    def _take_all(self, batch: list[tuple[audit.SeccompRecord, str | None]]) -> None:
        for record, cgroups in batch:
            self._take(record, cgroups)

    def _take(self, record: audit.SeccompRecord, cgroups: str | None) -> None:
        container_id = self._container(record.pid, cgroups)
        if container_id is None:
            return  # another program of this machine
        calls = self._calls.setdefault(container_id, Calls())
        if len(self._calls) > _CONTAINERS:
            self._calls.popitem(last=False)
        call = Call(_name(record.arch, record.number), _NAMES.get(record.action, f"{record.action:#x}"))
        if call not in calls.counts and len(calls.counts) >= _CALLS:
            calls.more += 1
            return
        calls.counts[call] += 1
        if calls.counts[call] == 1 and container_id:
            self._told(container_id, call, record.program)

    def _container(self, pid: int, cgroups: str | None) -> str | None:
        """Return the id of the process' container; "" if it is gone, None for a process outside of containers."""
        if cgroups is None:
            return self._pids.get(pid, "")
        found = next((one for one in _ID.findall(cgroups) if self._known(one)), None)
        if found is not None:
            self._pids[pid] = found
            self._pids.move_to_end(pid)
            if len(self._pids) > _PIDS:
                self._pids.popitem(last=False)
        return found


def _cgroups_of(pid: int) -> str | None:
    """Return the text of a process' /proc/PID/cgroup; None if it is gone."""
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            return file.read()
    except OSError:
        return None


@lru_cache(1024)
def _name(arch: int, number: int) -> str:
    return syscall_name(arch, number) or f"syscall {number}"
