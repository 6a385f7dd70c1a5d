"""Reads the last lines of a container's log, in which a program often says why it ends."""

from __future__ import annotations

import asyncio
import os
from typing import Final

from pods import log_place
from runtime.logs.place import open_to_read

_TAIL: Final = 16 << 10  # bytes
_LINES: Final = 5  # besides those of stacks
_FRAMES: Final = 2  # of each stack
_LONGEST: Final = 300  # characters of a line
_TOGETHER: Final = 800
_SECONDS: Final = 1.0  # the longest that an exit waits for a file system that hangs


async def of(log_path: str, log_directory: str) -> str:
    """Return the last lines, without CRI's time, stream and tag; "" if there is no line or no readable log."""
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
    return last_lines(tail)


def of_output(output: bytes) -> str:
    """Return the last non-empty line of a command's output."""
    lines = output[-_TAIL:].decode(errors="replace").strip().rsplit("\n", 1)
    return lines[-1].strip()[:_LONGEST]


def last_lines(log: bytes) -> str:
    """Return the last non-empty lines of a log in CRI's format.

    Of a stack trace, whose lines are indented, it has the first ones: what went wrong is in the line before them.
    """
    found: list[str] = []  # the last one first
    stack: list[str] = []
    count = size = 0
    for line in reversed(log.splitlines()):
        *head, raw = line.split(b" ", 3)
        text = raw.decode(errors="replace").rstrip()[:_LONGEST]
        if len(head) != 3 or not text:
            continue
        if text[0].isspace():
            stack.append(text)
            continue
        block = [*stack[-_FRAMES:], text]
        stack = []
        size += sum(map(len, block))
        if found and (size > _TOGETHER or count == _LINES):
            break
        found += block
        count += 1
    return "\n".join(reversed(found or stack[:_FRAMES]))
