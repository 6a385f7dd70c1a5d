"""Finds processes by their titles, and ends one without a chance that its number is another's by then."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path


def pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def title(pid: int) -> str:
    """Return the command line, which may be a title; "" if the process is gone or has none."""
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0"))
    except OSError:
        return ""


def name(pid: int) -> str:
    """Return what PR_SET_NAME has set; "" if the process is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").removesuffix("\n")
    except OSError:
        return ""


def titled(wanted: str) -> Iterator[int]:
    """Yield the processes with exactly this title."""
    return (pid for pid in pids() if title(pid) == wanted)


def open_if(pid: int, still: Callable[[], bool]) -> int:
    """Return a pidfd of a process that is `still` what it was found to be; -1 if it is not, or gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return -1
    if still():
        return pidfd
    os.close(pidfd)
    return -1


def end(pid: int, still: Callable[[], bool]) -> None:
    """Kill a process that is `still` what it was found to be."""
    if (pidfd := open_if(pid, still)) >= 0:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def end_titled(wanted: str) -> None:
    """Kill the processes with exactly this title."""
    for pid in titled(wanted):
        end(pid, partial(_is_titled, pid, wanted))


def _is_titled(pid: int, wanted: str) -> bool:
    return title(pid) == wanted
