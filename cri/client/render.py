"""Formats results: tables for people, JSON and YAML for programs, and quantities."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from cri.client.errors import UsageError

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.table import Table

_AGES = (("y", 31_536_000), ("d", 86_400), ("h", 3_600), ("m", 60))
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)([kmgt]?)(?:i?b)?", re.IGNORECASE)
_BINARY = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], out: TextIO | None = None) -> None:
    """Print rows under upper-case columns: by rich on a terminal, otherwise as aligned text for awk and cut."""
    out = out or sys.stdout
    if out.isatty():
        _rich_table(columns, rows, out)
        return
    lines = [tuple(columns), *(tuple(cell or "-" for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(), file=out)


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], out: TextIO) -> None:
    from rich.console import Console  # takes 100 ms to import, so only for a terminal

    Console(file=out, highlight=False).print(drawn(columns, rows))


def drawn(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return the table for rich."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, overflow="fold", no_wrap=column not in _FOLDED)
    for row in rows:
        made.add_row(*(Text(cell or "-", style=_STATE_STYLES.get(cell.split(" ")[0], "")) for cell in row))
    return made


_FOLDED = ("IMAGE", "NAME", "POD", "IP", "VALUE")
_STATE_STYLES = {"ready": "green", "running": "green", "notready": "yellow", "exited": "yellow", "unknown": "red"}


def document(value: Any, form: str, out: TextIO | None = None) -> None:
    """Print plain dicts and lists as "json" or "yaml"."""
    out = out or sys.stdout
    if form == "yaml":
        import yaml

        yaml.safe_dump(value, out, sort_keys=False, allow_unicode=True, width=120)
    else:
        print(json.dumps(value, indent=2, ensure_ascii=False), file=out)


def plain(message: Message) -> dict[str, Any]:
    """Convert a message by protobuf's JSON mapping (camelCase, 64-bit numbers as strings), with unset scalars."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, always_print_fields_with_no_presence=True)


def with_info(message: Any) -> dict[str, Any]:
    """Convert a verbose status answer, and parse the JSON in its `info` map."""
    result = plain(message)
    opened = {}
    for key, text in message.info.items():
        try:
            opened[key] = json.loads(text)
        except ValueError:
            opened[key] = text
    # The usual single entry "info" needs no name of its own.
    result["info"] = opened["info"] if list(opened) == ["info"] else opened
    return result


def new_layers(status: Any) -> str:
    """Return how new layers are stored, from a verbose status; "" for another runtime."""
    said = with_info(status)["info"]
    layers = said.get("imageLayers") if isinstance(said, dict) else None
    return f"{layers['kind']} (EROFS: {layers['erofs']})" if layers else ""


def age(created_at: int, now: int) -> str:
    """Return an age in its largest whole unit ("5m"). Both times are nanoseconds since the epoch."""
    if not created_at:
        return ""
    seconds = max(0, (now - created_at) // 1_000_000_000)
    return next((f"{seconds // length}{unit}" for unit, length in _AGES if seconds >= length), f"{seconds}s")


def size(count: int) -> str:
    """Format bytes in decimal units with three digits ("5.24MB")."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.3g}{unit}"
        amount /= 1000
    return f"{amount:.3g}TB"


def parse_size(text: str) -> int:
    """Parse a quantity such as "512", "64m" or "1.5GiB"; all units are binary. Raises UsageError."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"parse size {text!r}: expected a number with b, k, m, g or t, such as 64m")
    number, unit = match.groups()
    return int(float(number) * _BINARY[unit.lower()])


def printable(text: str) -> str:
    """Return a line without what a terminal would obey: parts of it may be a container's or a registry's words."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def short(identifier: str) -> str:
    """Shorten an id for a table."""
    return identifier.removeprefix("sha256:")[:13]
