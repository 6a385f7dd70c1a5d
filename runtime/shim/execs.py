"""Starts a container's execs, finds them by key, and kills them with everything that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterable, Mapping
from typing import Final

from runtime.cgroups import Cgroup
from runtime.errors import failing
from runtime.process.clone import clone_into
from runtime.process.join import Join, exec_process
from runtime.shim.exec import Exec
from runtime.shim.reply import Reply
from runtime.shim.supervisor import Parent
from runtime.wire.calls import Descriptors
from runtime.wire.reports import Reporter

_ROUNDS: Final = 16


class Execs:
    """The running execs, and those that exited with a terminal that nobody has asked for yet."""

    def __init__(self, parent: Parent) -> None:
        self._parent = parent
        self._execs: dict[str, Exec] = {}

    def begin(self, key: str, join: Join, reply: Reply) -> None:
        """Start one. Replies with its exit code when it ends."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, failing("clone", "exec"):
            pid, pidfd = clone_into(join.cgroup, 0, lambda: exec_process(join, Reporter(theirs)))
        execution = self._execs[key] = Exec(pid, pidfd, ours, self._parent, reply, bears=join.bears)

        def exited(status: int) -> None:
            execution.exited(status)
            if not execution.unclaimed:
                del self._execs[key]

        def joined(status: int) -> None:
            execution.take_what_is_there()
            if not execution.born:
                exited(status)
                return
            self._parent.on_exit(execution.pid, exited)
            if execution.killed:
                kill_family(execution.pid, execution.pidfd, join.cgroup)

        if join.bears:
            self._parent.command_started(pid, joined)
        else:
            self._parent.on_exit(pid, exited)

    def wait_running(self, key: str, reply: Reply) -> None:
        """Reply when the program runs or has exited; with its terminal's master if it has one."""
        entry = self._execs.get(key)
        if entry is None:
            reply(Descriptors())
            return
        if entry.unclaimed:
            del self._execs[key]
        entry.wait_running(reply)

    def kill(self, key: str, cgroup: Cgroup | None) -> None:
        """Kill an exec and everything that it started, including daemonised children in its session."""
        entry = self._execs.get(key)
        if entry is None:
            return
        if entry.unclaimed:
            self._execs.pop(key).close()
        elif cgroup is not None:
            entry.killed = True  # the program that it is about to clone is killed too
            kill_family(entry.pid, entry.pidfd, cgroup)

    def forget_unclaimed(self) -> None:
        for key in [key for key, execution in self._execs.items() if execution.unclaimed]:
            self._execs.pop(key).close()


def kill_family(first: int, pidfd: int, cgroup: Cgroup) -> None:
    """Send SIGKILL to a process of the cgroup, its descendants there, and the processes in its session."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
    for _round in range(_ROUNDS):  # until no new process is found: a stopped process starts none
        with contextlib.ExitStack() as opened:
            held = _hold(_family(first, cgroup.pids()), opened)
            # A process that is still found after its pidfd was opened is the pidfd's process, or dead.
            family = _family(first, held.keys() & set(cgroup.pids()))
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(held[pid], signal.SIGKILL)
        if not family:
            break
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _hold(pids: Iterable[int], opened: contextlib.ExitStack) -> Mapping[int, int]:
    """Open a pidfd for each process that exists."""
    held = {}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            held[pid] = os.pidfd_open(pid)
            opened.callback(os.close, held[pid])
    return held


def _family(root: int, candidates: Iterable[int]) -> list[int]:
    """Return the living candidates that descend from `root` or are in its session."""
    parents: dict[int, int] = {}
    members: set[int] = set()
    for pid in candidates:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                state, parent, _group, session = file.read().rsplit(b") ", 1)[1].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state in (b"Z", b"X"):
            continue
        parents[pid] = int(parent)
        if int(session) == root or pid == root:
            members.add(pid)
    grew = True
    while grew:
        more = {pid for pid, parent in parents.items() if parent in members and pid not in members}
        members |= more
        grew = bool(more)
    return sorted(members)
