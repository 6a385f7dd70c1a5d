"""What /proc tells of the machine's processor time and of its processes' memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path

from linux import syscalls

PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_IDLE, _IOWAIT = 3, 4  # columns of /proc/stat's cpu line
_KCMP = {"x86_64": 312, "aarch64": 272}
_KCMP_VM = 1


def busy_seconds() -> float:
    """Processor seconds that the whole machine has worked since it booted."""
    columns = [int(column) for column in (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(columns) - columns[_IDLE] - columns[_IOWAIT]) / _TICKS


def worked_seconds() -> float:
    """Processor seconds of every process of this PID namespace, those included that have ended and were waited for."""
    return sum(sum(map(int, _stat(pid)[11:15])) for pid in processes()) / _TICKS


def used_by(cgroups: Iterable[Path]) -> float:
    """Processor seconds of cgroups of version 2, those of ended processes included; a missing one counts nothing."""
    return sum(_used(path / "cpu.stat") for path in cgroups) / 1e6


def _used(stat: Path) -> int:
    try:
        lines = stat.read_text().splitlines()
    except FileNotFoundError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("usage_usec"))


def processes() -> set[int]:
    """Every process of this PID namespace."""
    return {int(entry.name) for entry in PROC.iterdir() if entry.name.isdecimal()}


def memory_bytes(pids: Iterable[int]) -> int:
    """PSS and page tables of the processes together; those that have ended count nothing.

    One that runs in its parent's memory (vfork) until it executes a program counts nothing either.
    """
    return sum(_memory(pid) for pid in pids if not _shares_memory(pid))


def _shares_memory(pid: int) -> bool:
    parent = _parent(pid)
    return parent > 0 and _kcmp(pid, parent) == 0


def _kcmp(one: int, other: int) -> int:
    """kcmp(2) of two processes' memory: 0 if it is the same; -1 if one has ended, or may not be looked at."""
    return int(syscalls.libc.syscall(_KCMP[platform.machine()], one, other, _KCMP_VM, 0, 0))


def _memory(pid: int) -> int:
    try:
        rollup = (PROC / str(pid) / "smaps_rollup").read_text()
        status = (PROC / str(pid) / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 1024 * (_field(rollup, "Pss:") + _field(status, "VmPTE:"))


def _field(text: str, name: str) -> int:
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(name)), 0)


def command_name(pid: int) -> str:
    """The first word of a process's command line without its directory; "" if it has ended."""
    try:
        words = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return os.path.basename(words[0].decode(errors="replace"))


def descendants(root: int) -> set[int]:
    """A process and all that descend from it."""
    parents = {pid: _parent(pid) for pid in processes()}
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])


def _stat(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) from the third on; zeroes if the process has ended."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["0"] * 50
