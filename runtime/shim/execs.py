"""Starts a container's execs, finds them by key, and kills them with everything that they started."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Final

from runtime.cgroups import Cgroup
from runtime.errors import failing
from runtime.light import contextlib, signal, socket
from runtime.process.clone import clone_into
from runtime.process.join import Join, exec_process
from runtime.process.joining import Joinings
from runtime.process.script import Runner
from runtime.shim.exec import Exec
from runtime.shim.reply import Reply
from runtime.shim.supervisor import Parent
from runtime.wire.calls import Descriptors
from runtime.wire.reports import EXEC, Conversation, Reporter

_ROUNDS: Final = 16


class Execs:
    """The running execs, and those that exited with a terminal that nobody has asked for yet."""

    def __init__(self, parent: Parent, runner: Runner) -> None:
        self._parent = parent
        self._runner = runner
        self._joinings = Joinings()
        self._execs: dict[str, Exec] = {}

    def __bool__(self) -> bool:
        return bool(self._execs)

    def begin(self, key: str, join: Join, reply: Reply) -> None:
        """Start one. Replies with its exit code when it ends."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            pid, pidfd, conversation = self._spawn(join, ours, theirs) or _fork(join, theirs)
        execution = self._execs[key] = Exec(pid, pidfd, ours, self._parent, reply, conversation)

        self._follow(key, execution, pid, join.cgroup)

    # What the next three leave must not refer to itself: with a list of 20 KB it would wait for a garbage collection.

    def _follow(self, key: str, execution: Exec, pid: int, cgroup: Cgroup) -> None:
        """Follow the process that is to be the program, or to bear it."""
        if execution.awaits_birth:
            self._parent.command_started(pid, lambda status: self._ended(key, execution, pid, cgroup, status))
        else:
            self._parent.on_exit(pid, lambda status: self._exited(key, execution, status))

    def _ended(self, key: str, execution: Exec, pid: int, cgroup: Cgroup, status: int) -> None:
        execution.take_what_is_there()
        # What tells of a child of ours that was there before is a born process that somebody has got hold of.
        if execution.pid == pid or self._parent.is_child(execution.pid):
            self._exited(key, execution, status)
            return
        self._follow(key, execution, execution.pid, cgroup)
        if execution.killed:
            kill_family(execution.pid, execution.pidfd, cgroup)

    def _exited(self, key: str, execution: Exec, status: int) -> None:
        execution.exited(status)
        if not execution.unclaimed:
            del self._execs[key]

    def _spawn(
        self, join: Join, ours: socket.socket, theirs: socket.socket
    ) -> tuple[int, int, Conversation] | None:
        """By a list of system calls; None where there is none for it."""
        if join.process.terminal or not self._runner.can_run:
            return None
        try:
            joining = self._joinings.of(join)
            program = joining.list_for(join.process.args) if joining is not None else None
        except UnicodeEncodeError:  # an interpreter says what cannot be written so
            return None
        if joining is None or program is None:
            return None
        started = self._runner.start(program.image, ours, (*join.stdio, theirs.fileno(), join.init_pidfd))
        if started is None:
            return None
        return *started, Conversation(EXEC, bears=joining.births, undone=program.failure)

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


def _fork(join: Join, theirs: socket.socket) -> tuple[int, int, Conversation]:
    with failing("clone", "exec"):
        pid, pidfd = clone_into(join.cgroup, 0, lambda: exec_process(join, Reporter(theirs)))
    return pid, pidfd, Conversation(EXEC, bears=join.bears)


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


def kill_orphans(init: int, cgroup: Cgroup) -> None:
    """Kill the execs that an earlier shim has left in a container with a PID namespace, and all that they started.

    They have been handed to whom the container's init was. What the container's processes leave goes to the init of
    their namespace.
    """
    reaper = _parent_of(init)
    for pid in cgroup.pids():
        if pid == init or not reaper or _parent_of(pid) != reaper:
            continue
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                if _parent_of(pid) == reaper:  # still the same process
                    kill_family(pid, pidfd, cgroup)
            finally:
                os.close(pidfd)


def _parent_of(pid: int) -> int:
    """Return the parent's pid; 0 if the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rsplit(b") ", 1)[1].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


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
