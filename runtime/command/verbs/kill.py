"""Implements `crisp-oci kill`: signals a container's init, or all of its processes."""

from __future__ import annotations

import os
import signal

from linux import syscalls
from runtime.command.flags import Flag, Options, UsageError
from runtime.command.invocation import Context, first
from runtime.command.record import Record
from runtime.command.removal import current_status, kill_group
from runtime.command.store import Entry
from runtime.errors import RuntimeCoreError, failing
from runtime.light import contextlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FLAGS: Final = (Flag("all", short="a", help="signal every process of the container"),)
ARGUMENTS: Final = "ID [SIGNAL]"
_ALIVE: Final = ("created", "running", "paused")


def run(context: Context, options: Options, operands: list[str]) -> int:
    id, others = first(operands, "ID")
    number = signal_number(others[0] if others else "TERM")
    everybody = options.switch("all")
    entry = context.store.existing(id)
    record = entry.load()  # not locked: a `start` that hangs in a hook holds the lock, and `kill` must end it
    if record.cgroup and number == signal.SIGKILL and (everybody or not _has_own_pid_namespace(entry)):
        # No PID namespace ends with the init: the other processes would live on. They may be left even if the init is
        # gone.
        if record.alive:
            _signal_init(record, number)  # it may be in another cgroup by now
        kill_group(record)
    elif record.cgroup and everybody:
        _signal_all(record, number)
    elif (found := current_status(entry, record)) in _ALIVE:
        _signal_init(record, number)
        if number == signal.SIGKILL and found == "paused":
            kill_group(record)  # a process frozen by version 1 dies only when thawed
    elif not everybody:
        raise RuntimeCoreError(f"container not running: {id}")
    return 0


def _has_own_pid_namespace(entry: Entry) -> bool:
    namespace = entry.spec().linux.namespace("pid")
    return namespace is not None and not namespace.path


def signal_number(text: str) -> int:
    """Return the number of 9, KILL or SIGKILL; 0 only checks that the process exists. Raises UsageError."""
    if text.isdecimal() and int(text) <= signal.SIGRTMAX:
        return int(text)
    name = text.upper()
    found = getattr(signal, name if name.startswith("SIG") else f"SIG{name}", None)
    if not isinstance(found, signal.Signals):
        raise UsageError(f"unknown signal {text!r}")
    return found


def _signal_init(record: Record, number: int) -> None:
    with failing("signal", f"process {record.pid}"):
        pidfd = syscalls.pidfd_open(record.pid)
        try:
            if record.alive:  # then the pidfd is the init's, not a later process's
                syscalls.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)


def _signal_all(record: Record, number: int) -> None:
    for pid in record.group().pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
