"""Finds processes as ps(1) does."""

from __future__ import annotations

import subprocess
from pathlib import Path


def titled(pattern: str) -> list[int]:
    """The processes whose command line has the regular expression."""
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True).stdout
    return [int(line) for line in found.split()]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
