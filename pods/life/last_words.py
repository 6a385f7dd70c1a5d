"""The last line that a container has written to its log: where a program says why it ends."""

from __future__ import annotations

import os
from typing import Final

_TAIL: Final = 4096
_LONGEST: Final = 300


def of(log_path: str) -> str:
    """The line without CRI's time, stream and tag; "" when there is none, or no log."""
    try:
        descriptor = os.open(log_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, _TAIL, max(0, size - _TAIL))
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    for line in reversed(tail.splitlines()):
        *head, text = line.split(b" ", 3)
        if len(head) == 3 and text.strip():
            return text.decode(errors="replace").strip()[:_LONGEST]
    return ""
