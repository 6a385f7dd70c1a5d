"""Implements `crisp-oci delete`: removes a stopped container."""

from __future__ import annotations

from runtime.command.flags import Flag, Options
from runtime.command.invocation import Context, only
from runtime.command.removal import current_status, destroy, end
from runtime.command.store import NoContainer
from runtime.errors import RuntimeCoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FLAGS: Final = (Flag("force", short="f", help="kill the container first; no error if it does not exist"),)
ARGUMENTS: Final = "ID"


def run(context: Context, options: Options, operands: list[str]) -> int:
    force = options.switch("force")
    try:
        entry = context.store.existing(only(operands, "ID"))
        if force and (record := entry.load()).alive:
            end(record)  # before locking: a `start` that hangs in a hook holds the lock
        with entry.locked():
            record = entry.load()
            found = current_status(entry, record)
            if not force and found not in ("stopped", "created", "creating"):
                raise RuntimeCoreError(f"cannot delete container {record.id} that is not stopped: {found}")
            destroy(entry, record, context.log)
    except NoContainer:
        if not force:
            raise
        context.store.entry(only(operands, "ID")).remove()  # left by a `create` that was killed before it wrote a state
    return 0
