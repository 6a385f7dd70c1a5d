"""Reads the last line of a container's log, in which a program often says why it ends."""

from __future__ import annotations

import asyncio
import os
from typing import Final

from pods import log_place
from runtime.logs.place import open_to_read

_TAIL: Final = 4096  # bytes
_LONGEST: Final = 300
_SECONDS: Final = 1.0  # the longest that an exit waits for a file system that hangs


async def of(log_path: str, log_directory: str) -> str:
    """Return the last line, without CRI's time, stream and tag; "" if there is no line or no readable log."""
    try:
        return await asyncio.wait_for(asyncio.to_thread(_read, log_path, log_directory), _SECONDS)
    except (OSError, TimeoutError):
        return ""


def _read(log_path: str, log_directory: str) -> str:
    descriptor = open_to_read(log_path, log_place.trusted(log_directory))
    try:
        tail = os.pread(descriptor, _TAIL, max(0, os.fstat(descriptor).st_size - _TAIL))
    finally:
        os.close(descriptor)
    return last_line(tail)


def last_line(log: bytes) -> str:
    """Return the last non-empty line of a log in CRI's format."""
    for line in reversed(log.splitlines()):
        *head, text = line.split(b" ", 3)
        if len(head) == 3 and text.strip():
            return text.decode(errors="replace").strip()[:_LONGEST]
    return ""
