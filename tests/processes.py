"""Finds processes by what /proc says of them."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from tests.waiting import SECONDS, until


def titled(pattern: str) -> list[int]:
    """The processes whose command line has the regular expression."""
    sought = re.compile(pattern.encode())
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if sought.search(_command(path))]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def shims_of(pod_id: str) -> list[int]:
    """A pod's shim; while it is succeeded, none or both."""
    return titled(f"^crisp-shim {pod_id}")


def shim_of(pod_id: str) -> int:
    (pid,) = shims_of(pod_id)
    return pid


def kill_shim(pod_id: str, seconds: float = SECONDS) -> None:
    """Kill a pod's shim as a crash would, and wait for its successor."""
    shim = shim_of(pod_id)
    os.kill(shim, signal.SIGKILL)
    until(lambda: shims_of(pod_id) not in ([], [shim]), seconds)


def children_of(pid: int) -> list[int]:
    """Those of all its threads."""
    found = [thread.joinpath("children").read_text() for thread in Path(f"/proc/{pid}/task").iterdir()]
    return [int(child) for line in found for child in line.split()]


def name_of(pid: int) -> str:
    """Its name, "" if it has been reaped."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return ""


def _command(path: Path) -> bytes:
    try:
        return path.read_bytes().rstrip(b"\0").replace(b"\0", b" ")
    except (FileNotFoundError, ProcessLookupError):
        return b""
