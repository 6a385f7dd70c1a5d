"""Signal names of CRI and image configurations to numbers."""

from __future__ import annotations

import re
import signal

from pods.errors import InvalidArgument

_REALTIME = re.compile(r"(?:SIG)?RT(MIN|MAX)(?:(\+|-|PLUS|MINUS)(\d+))?")


def signal_number(name: str) -> int:
    """The number of "SIGTERM", "TERM", "15", "SIGRTMIN+3" or CRI's "SIGRTMINPLUS3". Raises InvalidArgument."""
    text = name.strip().upper()
    if text.isdigit() and 0 < int(text) <= signal.SIGRTMAX:
        return int(text)
    if match := _REALTIME.fullmatch(text):
        base = signal.SIGRTMIN if match[1] == "MIN" else signal.SIGRTMAX
        offset = int(match[3] or 0) * (-1 if match[2] in ("-", "MINUS") else 1)
        if signal.SIGRTMIN <= base + offset <= signal.SIGRTMAX:
            return base + offset
    full = text if text.startswith("SIG") else "SIG" + text
    number = getattr(signal, full, None)
    if isinstance(number, signal.Signals):
        return number.value
    raise InvalidArgument(f"stop signal: {name!r} is not the name of a signal")
