"""Removes a container: its processes, cgroup and state directory. Runs the poststop hooks."""

from __future__ import annotations

import os
import time

from linux import syscalls
from runtime.command.cgroup_driver import driver_of
from runtime.command.log import Log
from runtime.command.record import Record, state_document, status
from runtime.command.store import Entry, NoContainer
from runtime.errors import OperationFailed, RuntimeCoreError
from runtime.light import contextlib, signal
from runtime.process.hooks import run_hooks
from runtime.spec.values import Hooks, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_KILL_SECONDS: Final = 10.0  # seconds that killed processes may take to exit


def destroy(entry: Entry, record: Record, log: Log) -> None:
    """Kill the container's processes, remove it, and run its poststop hooks. Raises RuntimeCoreError.

    If processes or cgroups cannot be removed, the state directory stays, so that the caller can try again.
    """
    if record.alive:
        end(record)
    remove_cgroup(record, log, strict=True)
    spec = _spec_left(entry, log)
    entry.remove()
    if spec is not None:
        state = state_document(record, "stopped", spec.annotations)
        run_poststop(spec.hooks, state, log)


def _spec_left(entry: Entry, log: Log) -> Spec | None:
    """Return the configuration, or None: an unreadable one must not prevent the container's deletion."""
    try:
        return entry.spec()
    except NoContainer:
        return None
    except (RuntimeCoreError, ValueError) as error:
        log.warning(f"delete container {entry.id}: poststop hooks are skipped: {error}")
        return None


def end(record: Record) -> None:
    """Send SIGKILL to the init and to the cgroup's processes, and wait for the init's exit. Raises RuntimeCoreError."""
    if record.cgroup:
        kill_group(record)
    try:
        pidfd = syscalls.pidfd_open(record.pid)
    except ProcessLookupError:
        return
    try:
        if not record.alive:
            return
        with contextlib.suppress(ProcessLookupError):
            syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
        wait_ended(pidfd, record.pid)
    finally:
        os.close(pidfd)


def kill_group(record: Record) -> None:
    """Send SIGKILL to all processes in the cgroup. Raises RuntimeCoreError if a frozen parent keeps them alive."""
    cgroup = record.group()
    cgroup.kill()
    if (freezer := cgroup.kept_by()) and cgroup.pids():
        # The frozen ancestor contains other processes too: do not thaw it. The killed ones die when it is thawed.
        raise RuntimeCoreError(f"kill container {record.id}: its processes are frozen; thaw `{freezer}` and try again")


def wait_ended(pidfd: int, pid: int) -> None:
    """Sleep until the process has exited, reaped or not. Raises OperationFailed after 10 seconds."""
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(_KILL_SECONDS * 1000):
        raise OperationFailed("kill", f"process {pid}", 110)


def remove_cgroup(record: Record, log: Log, *, strict: bool = False) -> None:
    """Kill what is in the container's cgroup, then remove the cgroup and the parents that were created for it."""
    if not record.cgroup:
        return
    cgroup = record.group()
    try:
        kill_group(record)
        _remove_when_empty(record)
        cgroup.remove_made_parents()
        driver_of(record).removed()
    except RuntimeCoreError as error:
        if strict:
            raise
        log.warning(str(error))


def _remove_when_empty(record: Record) -> None:
    """Remove the cgroup, which stays busy for a moment after its last process."""
    cgroup = record.group()
    deadline = time.monotonic() + _KILL_SECONDS
    delay = 0.0005
    while True:
        try:
            cgroup.remove()
            return
        except OperationFailed:
            if time.monotonic() > deadline:
                raise
        time.sleep(delay)
        delay = min(2 * delay, 0.1)


def run_poststop(hooks: Hooks, state: dict[str, Any], log: Log) -> None:
    """Run the poststop hooks. A failing hook is logged, and the next one runs."""
    for index, hook in enumerate(hooks.poststop):
        try:
            run_hooks("poststop", (hook,), {**state, "status": "stopped", "pid": 0}, first=index)
        except RuntimeCoreError as error:
            log.warning(str(error))


def current_status(entry: Entry, record: Record) -> str:
    return status(record, entry.path("exec.fifo"))
