"""Checks limits that name parts of the machine: CPUs, memory nodes, sizes of huge pages. Reads /sys."""

from __future__ import annotations

import re
from pathlib import Path

from linux import cpu_lists
from pods.errors import InvalidArgument
from pods.model import Resources

_UNITS = {"K": 1, "M": 1 << 10, "G": 1 << 20}  # in KiB


def check_host_limits(
    resources: Resources, sys: Path = Path("/sys"), field: str = "config.linux.resources"
) -> None:
    """Refuse (InvalidArgument) CPUs and memory nodes that are not online, and sizes of huge pages the kernel lacks."""
    _check_list(f"{field}.cpuset_cpus", resources.cpuset_cpus, sys / "devices/system/cpu/online", "CPUs")
    _check_list(f"{field}.cpuset_mems", resources.cpuset_mems, sys / "devices/system/node/online", "memory nodes")
    # kubelet sets a limit of 0 for every size that it knows.
    limited = [size for size, limit in resources.hugepage_limits.items() if limit]
    if not limited:
        return
    known = {int(path.name[len("hugepages-") : -len("kB")]) for path in sys.glob("kernel/mm/hugepages/hugepages-*kB")}
    for size in limited:
        if _kibibytes(size) not in known:
            shown = ", ".join(f"{kibibytes}kB" for kibibytes in sorted(known)) or "none"
            raise InvalidArgument(f"{field}.hugepage_limits: this node has no huge pages of {size!r}, only: {shown}")


def _check_list(member: str, wanted: str, online: Path, what: str) -> None:
    if not wanted or not online.exists():
        return
    there = online.read_text().strip()
    try:
        within = cpu_lists.numbers(wanted) <= cpu_lists.numbers(there)
    except ValueError:  # a number beyond any kernel's, or a range that runs backwards
        within = False
    if not within:
        raise InvalidArgument(f"{member}: {wanted!r} is not within this node's {what}, {there}")


def _kibibytes(size: str) -> int:
    match = re.fullmatch(r"([0-9]+)([KMG])B", size)
    return int(match[1]) * _UNITS[match[2]] if match else 0
