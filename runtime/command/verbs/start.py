"""Implements `crisp-oci start`: executes the program of a created container."""

from __future__ import annotations

from linux import syscalls
from runtime.command.flags import Options
from runtime.command.invocation import Context, only
from runtime.command.opening import listener, open_gate, run_poststart
from runtime.command.removal import current_status
from runtime.errors import RuntimeCoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FLAGS: Final = ()
ARGUMENTS: Final = "ID"


def run(context: Context, options: Options, operands: list[str]) -> int:
    entry = context.store.existing(only(operands, "ID"))
    with entry.locked():
        record = entry.load()
        found = current_status(entry, record)
        if found == "stopped":
            raise RuntimeCoreError(f"cannot start a container that has stopped: {record.id}")
        if found == "paused":
            raise RuntimeCoreError(f"cannot start a paused container, resume it first: {record.id}")
        if found != "created":
            raise RuntimeCoreError(f"cannot start an already running container: {record.id}")
        spec = entry.spec()
        notified = listener(entry)
        pidfd = syscalls.pidfd_open(record.pid) if notified else -1
        open_gate(entry, record, spec, context.log)
    run_poststart(record, spec)
    if notified:
        notified.wait_ready(record.pid, pidfd)
    return 0
