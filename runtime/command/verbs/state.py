"""Implements `crisp-oci state`: prints a container's state as runtime-spec defines it."""

from __future__ import annotations

import json

from runtime.command.flags import Options
from runtime.command.invocation import Context, only
from runtime.command.record import state_document
from runtime.command.removal import current_status
from runtime.spec.parse import spelled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FLAGS: Final = ()
ARGUMENTS: Final = "ID"


def run(context: Context, options: Options, operands: list[str]) -> int:
    entry = context.store.existing(only(operands, "ID"))
    record = entry.load()
    annotations = spelled(entry.config()).get("annotations") or {}
    print(json.dumps(state_document(record, current_status(entry, record), annotations), indent=2))
    return 0
