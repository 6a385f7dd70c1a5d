"""Taking a container apart: its processes, cgroup, state directory, and the poststop hooks."""

from __future__ import annotations

import contextlib
import os
import time

from linux import syscalls
from runtime.command.cgroup_driver import driver_of
from runtime.command.log import Log
from runtime.command.record import Record, state_document, status
from runtime.command.store import Entry, NoContainer
from runtime.errors import OperationFailed, RuntimeCoreError
from runtime.light import signal
from runtime.process.hooks import run_hooks
from runtime.spec.values import Hooks, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_PATIENCE: Final = 10.0  # seconds for killed processes to be gone


def destroy(entry: Entry, record: Record, log: Log) -> None:
    """End what is left of the container, forget it, and run its poststop hooks. Raises RuntimeCoreError.

    Its state directory stays when processes or cgroups cannot be removed, so that it can be tried again.
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
    """The configuration, if it is there and can be read: what cannot must not keep the container from being deleted."""
    try:
        return entry.spec()
    except NoContainer:
        return None
    except (RuntimeCoreError, ValueError) as error:
        log.warning(f"delete container {entry.id}: its poststop hooks are not known: {error}")
        return None


def end(record: Record) -> None:
    """SIGKILL to the init and all that is in the cgroup; returns when the init has ended. Raises RuntimeCoreError."""
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
    """SIGKILL to all that is in the cgroup. Raises RuntimeCoreError where somebody keeps it from dying."""
    cgroup = record.group()
    cgroup.kill()
    if (freezer := cgroup.kept_by()) and cgroup.pids():
        # Others are in there, too. Who is killed dies when that is thawed.
        raise RuntimeCoreError(f"kill container {record.id}: its processes are frozen: thaw `{freezer}`")


def wait_ended(pidfd: int, pid: int) -> None:
    """Sleep until the process has ended, reaped or not. Raises OperationFailed after 10 seconds."""
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(_PATIENCE * 1000):
        raise OperationFailed("kill", f"process {pid}", 110)


def remove_cgroup(record: Record, log: Log, *, strict: bool = False) -> None:
    """Kill what is in the container's cgroup, and remove it, with parents that were made for it or its like."""
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
    """A cgroup is busy for a moment longer than its last process lives."""
    cgroup = record.group()
    deadline = time.monotonic() + _PATIENCE
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
    """The container is gone: a hook that fails is told, and the next one runs."""
    for index, hook in enumerate(hooks.poststop):
        try:
            run_hooks("poststop", (hook,), {**state, "status": "stopped", "pid": 0}, first=index)
        except RuntimeCoreError as error:
            log.warning(str(error))


def current_status(entry: Entry, record: Record) -> str:
    return status(record, entry.path("exec.fifo"))
