"""Counts what the processes of a container hold open."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_OPEN_FILES = re.compile(r"^Max open files +(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Processes:
    """Totals over a container's processes; `open_files_limit` is the first process's soft limit, None if unlimited."""

    count: int
    descriptors: int
    sockets: int
    open_files_limit: int | None


def look_at(pids: Iterable[int], first: int, proc: Path = Path("/proc")) -> Processes:
    """Count now. A process that ends meanwhile does not count."""
    count = descriptors = sockets = 0
    for pid in pids:
        directory = proc / str(pid) / "fd"
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        count += 1
        descriptors += len(names)
        for name in names:
            with contextlib.suppress(OSError):
                sockets += os.readlink(directory / name).startswith("socket:")
    return Processes(count, descriptors, sockets, _open_files_limit(proc / str(first) / "limits"))


def _open_files_limit(path: Path) -> int | None:
    try:
        found = _OPEN_FILES.search(path.read_text())
    except OSError:
        return None
    return int(found[1]) if found else None
