"""Finds processes by what /proc says of them."""

from __future__ import annotations

import re
from pathlib import Path


def titled(pattern: str) -> list[int]:
    """The processes whose command line has the regular expression."""
    sought = re.compile(pattern.encode())
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if sought.search(_command(path))]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _command(path: Path) -> bytes:
    try:
        return path.read_bytes().rstrip(b"\0").replace(b"\0", b" ")
    except (FileNotFoundError, ProcessLookupError):
        return b""
