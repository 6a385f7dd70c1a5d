"""Implements `crisp-oci pause`: suspends all processes of a container."""

from __future__ import annotations

from runtime.command.flags import Options
from runtime.command.invocation import Context, only
from runtime.command.removal import current_status
from runtime.errors import NotSupported, RuntimeCoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FLAGS: Final = ()
ARGUMENTS: Final = "ID"


def run(context: Context, options: Options, operands: list[str]) -> int:
    entry = context.store.existing(only(operands, "ID"))
    with entry.locked():
        record = entry.load()
        if current_status(entry, record) not in ("created", "running"):
            raise RuntimeCoreError(f"container not running: {record.id}")
        if not record.cgroup:
            raise NotSupported("pause", record.id, "it has no cgroup of its own")
        record.group().freeze()
    return 0
