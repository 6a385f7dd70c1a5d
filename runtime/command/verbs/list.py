"""Implements `crisp-oci list`: lists the containers below --root."""

from __future__ import annotations

import json

from runtime.command.flags import Flag, Options, UsageError
from runtime.command.invocation import Context
from runtime.command.record import state_document
from runtime.command.removal import current_status
from runtime.command.store import Entry, NoContainer
from runtime.spec.parse import spelled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

FLAGS: Final = (
    Flag("format", short="f", argument="FORMAT", help="table (default) or json"),
    Flag("quiet", short="q", help="print only ids"),
)
ARGUMENTS: Final = ""
_COLUMNS: Final = ("id", "pid", "status", "bundle", "created", "owner")


def run(context: Context, options: Options, operands: list[str]) -> int:
    format = options.text("format", "table")
    if format not in ("table", "json"):
        raise UsageError(f"invalid format option {format!r}")
    states = [state for entry in context.store.all(must_exist=context.own_root) if (state := _state(entry)) is not None]
    if options.switch("quiet"):
        print("".join(f"{state['id']}\n" for state in states), end="")
    elif format == "json":
        print(json.dumps(states or None, separators=(",", ":")))
    else:
        print(table([[column.upper() for column in _COLUMNS], *([str(s[c]) for c in _COLUMNS] for s in states)]))
    return 0


def _state(entry: Entry) -> dict[str, Any] | None:
    try:
        record = entry.load()
        annotations = spelled(entry.config()).get("annotations") or {}
    except (NoContainer, ValueError):
        return None  # being created or removed
    return state_document(record, current_status(entry, record), annotations)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Format columns as wide as their widest cell, but at least 12 characters."""
    widths = [max(10, *(len(row[column]) for row in rows)) + 2 for column in range(len(rows[0]))]
    lines = ("".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
