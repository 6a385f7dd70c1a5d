"""Converts signal names, as CRI and image configurations write them, to numbers (signal(7))."""

from __future__ import annotations

import re
import signal
from typing import Final

from pods.errors import InvalidArgument

_REALTIME: Final = re.compile(r"(?:SIG)?RT(MIN|MAX)(?:([+-])([0-9]{1,2}))?$")
# The kernel's range. libc reserves the first two, but a container may have another libc.
_FIRST_REALTIME: Final = 34
_LAST_REALTIME: Final = 64


def signal_number(name: str) -> int:
    """Return the number of "SIGTERM", "term", "15" or "SIGRTMIN+3"; 0 for an unknown name."""
    text = name.upper()
    if text.isascii() and text.isdigit():
        digits = text.lstrip("0")  # int() raises for thousands of them
        return int(digits) if digits and len(digits) < 3 and int(digits) <= _LAST_REALTIME else 0
    if match := _REALTIME.match(text):
        base = _FIRST_REALTIME if match[1] == "MIN" else _LAST_REALTIME
        offset = int(match[3] or 0) * (-1 if match[2] == "-" else 1)
        return base + offset if _FIRST_REALTIME <= base + offset <= _LAST_REALTIME else 0
    known = signal.Signals.__members__.get(text if text.startswith("SIG") else f"SIG{text}")
    return known.value if known else 0


def canonical_name(text: str, field: str) -> str:
    """Return the canonical name of a signal ("SIGTERM", "SIGRTMIN+3"). Raises InvalidArgument naming `field`."""
    number = signal_number(text)
    if _FIRST_REALTIME <= number <= _LAST_REALTIME:
        offset = number - _FIRST_REALTIME
        return f"SIGRTMIN+{offset}" if offset else "SIGRTMIN"
    try:
        return signal.Signals(number).name
    except ValueError:
        raise InvalidArgument(f"{field}: {text!r} is not a signal") from None
