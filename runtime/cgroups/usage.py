"""Reads what a cgroup has used, in both versions (kernel docs "cgroup-v1/", "cgroup-v2.rst", "psi.rst").

The rest of this package does not import it: a shim does not need it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from runtime.cgroups.cgroup import Cgroup

_UNLIMITED: Final = 1 << 62  # version 1 shows "no limit" as the largest possible number of pages
_PAGE: Final = 4096
_STALL: Final = re.compile(r"(some|full) avg10=(\S+) avg60=(\S+) avg300=(\S+) total=(\d+)")
_TICK: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")  # nanoseconds
_V1_STAT: Final = {
    "anon": "total_rss",
    "file": "total_cache",
    "file_mapped": "total_mapped_file",
    "inactive_file": "total_inactive_file",
    "active_file": "total_active_file",
    "pgfault": "total_pgfault",
    "pgmajfault": "total_pgmajfault",
}


@dataclass(frozen=True, slots=True)
class Stall:
    """One line of a pressure file: the total in nanoseconds, and percentages over 10, 60 and 300 seconds."""

    total: int
    avg10: float
    avg60: float
    avg300: float


@dataclass(frozen=True, slots=True)
class Pressure:
    """How long some or all of the tasks waited for a resource."""

    some: Stall
    full: Stall


@dataclass(frozen=True, slots=True)
class CpuUse:
    """CPU times in nanoseconds since the cgroup was created."""

    total: int
    user: int = 0
    system: int = 0
    periods: int = 0
    throttled_periods: int = 0
    throttled: int = 0


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory use in bytes. A limit of None means none; `swap` and `swap_limit` exclude memory; faults are counts."""

    usage: int
    limit: int | None = None
    peak: int = 0
    failures: int = 0  # how often the limit was hit
    swap: int = 0
    swap_limit: int | None = None
    anon: int = 0
    file: int = 0
    mapped: int = 0
    kernel: int = 0
    active_file: int = 0
    inactive_file: int = 0
    faults: int = 0
    major_faults: int = 0

    @property
    def working_set(self) -> int:
        """The usage without the page cache that was not used recently."""
        return max(0, self.usage - self.inactive_file)


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """I/O of one block device."""

    major: int
    minor: int
    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, slots=True)
class HugePageUse:
    """Bytes in huge pages of one size. Version 2 has no peak; there it equals the usage."""

    usage: int
    peak: int


@dataclass(frozen=True, slots=True)
class Usage:
    """The counters of a cgroup. A part is None (or empty) if no controller of this machine counts it."""

    cpu: CpuUse | None
    memory: MemoryUse | None
    tasks: int | None  # processes and threads
    tasks_limit: int | None
    oom_kills: int
    devices: tuple[DeviceUse, ...]
    hugetlb: Mapping[str, HugePageUse]  # by page size ("2MB")
    cpu_pressure: Pressure | None
    memory_pressure: Pressure | None
    io_pressure: Pressure | None


def read_usage(cgroup: Cgroup, *, detailed: bool = True) -> Usage | None:
    """Read the counters of the cgroup and those below it. None if it is gone or has no files.

    Without `detailed` it reads less than half of the files, and only what CRI's stats need: the CPU total, the used
    memory, its limits and faults, the number of tasks, and the pressures. All other values are 0, None or empty.
    """
    unified = _Directory(cgroup.unified)
    tasks = _directory(cgroup, "pids")
    cpu = _cpu(cgroup, unified, detailed)
    memory = _memory(cgroup, detailed)
    if cpu is None and memory is None:
        return None
    return Usage(
        cpu=cpu,
        memory=memory,
        tasks=tasks.number("pids.current"),
        tasks_limit=tasks.number("pids.max") if detailed else None,
        oom_kills=cgroup.oom_kills() if detailed else 0,
        devices=_devices(cgroup) if detailed else (),
        hugetlb=_hugetlb(_directory(cgroup, "hugetlb")) if detailed else {},
        cpu_pressure=pressure(unified.text("cpu.pressure")),
        memory_pressure=pressure(unified.text("memory.pressure")),
        io_pressure=pressure(unified.text("io.pressure")),
    )


class _Directory:
    """The files of a cgroup in one hierarchy. Missing files, also of a removed cgroup, read as empty."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def text(self, name: str) -> str:
        if not self._path:
            return ""
        try:
            file = os.open(f"{self._path}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return ""
        try:
            # A read of less than a page is the whole file: no second read(2) is needed.
            text = chunk = os.read(file, _PAGE)
            while len(chunk) == _PAGE:
                text += (chunk := os.read(file, _PAGE))
        except OSError:
            return ""
        finally:
            os.close(file)
        return text.decode().strip()

    def number(self, name: str) -> int | None:
        """Return the number in a file; None if it is missing or "max"."""
        text = self.text(name)
        return int(text) if text.isdecimal() else None

    def table(self, name: str) -> dict[str, int]:
        return flat_keyed(self.text(name))

    def names(self) -> list[str]:
        try:
            return os.listdir(self._path) if self._path else []
        except OSError:
            return []


def flat_keyed(text: str) -> dict[str, int]:
    """Parse a file of "key number" lines."""
    words = text.split()
    return {key: int(value) for key, value in zip(words[::2], words[1::2], strict=False) if value.isdecimal()}


def pressure(text: str) -> Pressure | None:
    """Parse a pressure file, whose totals are microseconds. None if it is empty (a kernel without PSI)."""
    stalls = {
        kind: Stall(int(total) * 1000, float(avg10), float(avg60), float(avg300))
        for kind, avg10, avg60, avg300, total in _STALL.findall(text)
    }
    if "some" not in stalls:
        return None
    return Pressure(stalls["some"], stalls.get("full", Stall(0, 0.0, 0.0, 0.0)))  # cpu has no "full" before Linux 5.13


def _directory(cgroup: Cgroup, controller: str) -> _Directory:
    home = cgroup.hierarchies.home(controller)
    return _Directory(home and home + cgroup.path)


def _cpu(cgroup: Cgroup, unified: _Directory, detailed: bool) -> CpuUse | None:
    if "cpuacct" in cgroup.hierarchies.v1:
        accounting = _directory(cgroup, "cpuacct")
        total = accounting.number("cpuacct.usage")
        if total is None or not detailed:
            return None if total is None else CpuUse(total)
        throttling = _directory(cgroup, "cpu").table("cpu.stat")
        ticks = accounting.table("cpuacct.stat")
        return CpuUse(
            total=total,
            user=ticks.get("user", 0) * _TICK,
            system=ticks.get("system", 0) * _TICK,
            periods=throttling.get("nr_periods", 0),
            throttled_periods=throttling.get("nr_throttled", 0),
            throttled=throttling.get("throttled_time", 0),
        )
    stat = unified.table("cpu.stat")  # exists, without throttling, even if the controller is not enabled
    return None if "usage_usec" not in stat else CpuUse(
        total=stat["usage_usec"] * 1000,
        user=stat.get("user_usec", 0) * 1000,
        system=stat.get("system_usec", 0) * 1000,
        periods=stat.get("nr_periods", 0),
        throttled_periods=stat.get("nr_throttled", 0),
        throttled=stat.get("throttled_usec", 0) * 1000,
    )


def _memory(cgroup: Cgroup, detailed: bool) -> MemoryUse | None:
    directory = _directory(cgroup, "memory")
    return _memory_v1(directory, detailed) if "memory" in cgroup.hierarchies.v1 else _memory_v2(directory, detailed)


def _memory_v1(directory: _Directory, detailed: bool) -> MemoryUse | None:
    usage = directory.number("memory.usage_in_bytes")
    if usage is None:
        return None
    stat = directory.table("memory.stat")
    limit = _limit(directory.number("memory.limit_in_bytes"))
    both = _limit(directory.number("memory.memsw.limit_in_bytes"))  # memory and swap together
    return MemoryUse(
        usage=usage,
        limit=limit,
        peak=(directory.number("memory.max_usage_in_bytes") or 0) if detailed else 0,
        failures=(directory.number("memory.failcnt") or 0) if detailed else 0,
        swap=stat.get("total_swap", 0),
        swap_limit=None if both is None or limit is None else both - limit,
        kernel=(directory.number("memory.kmem.usage_in_bytes") or 0) if detailed else 0,
        **_stat({name: stat.get(v1, 0) for name, v1 in _V1_STAT.items()}),
    )


def _memory_v2(directory: _Directory, detailed: bool) -> MemoryUse | None:
    usage = directory.number("memory.current")
    if usage is None:
        return None
    stat = directory.table("memory.stat")
    return MemoryUse(
        usage=usage,
        limit=directory.number("memory.max"),
        peak=(directory.number("memory.peak") or 0) if detailed else 0,
        failures=directory.table("memory.events").get("max", 0) if detailed else 0,
        swap=directory.number("memory.swap.current") or 0,
        swap_limit=directory.number("memory.swap.max"),
        kernel=stat.get("kernel", stat.get("kernel_stack", 0) + stat.get("slab", 0)),  # "kernel" since Linux 5.18
        **_stat(stat),
    )


def _stat(stat: Mapping[str, int]) -> dict[str, int]:
    """Return the members of `MemoryUse` that memory.stat has, by version 2's names."""
    return {
        "anon": stat.get("anon", 0),
        "file": stat.get("file", 0),
        "mapped": stat.get("file_mapped", 0),
        "active_file": stat.get("active_file", 0),
        "inactive_file": stat.get("inactive_file", 0),
        "faults": stat.get("pgfault", 0),
        "major_faults": stat.get("pgmajfault", 0),
    }


def _limit(value: int | None) -> int | None:
    return None if value is None or value >= _UNLIMITED else value


def _devices(cgroup: Cgroup) -> tuple[DeviceUse, ...]:
    if "blkio" in cgroup.hierarchies.v1:
        blkio = _directory(cgroup, "blkio")
        return _devices_v1(
            blkio.text("blkio.throttle.io_service_bytes_recursive"), blkio.text("blkio.throttle.io_serviced_recursive")
        )
    return _devices_v2(_directory(cgroup, "io").text("io.stat"))


def _devices_v1(service_bytes: str, serviced: str) -> tuple[DeviceUse, ...]:
    found: dict[tuple[int, int], dict[str, int]] = {}
    for text, members in ((service_bytes, ("read_bytes", "write_bytes")), (serviced, ("reads", "writes"))):
        for line in text.splitlines():
            device, *rest = line.split()
            if len(rest) == 2 and rest[0] in ("Read", "Write"):
                major, minor = map(int, device.split(":"))
                found.setdefault((major, minor), {})[members[rest[0] == "Write"]] = int(rest[1])
    return tuple(DeviceUse(*device, **use) for device, use in found.items())


def _devices_v2(text: str) -> tuple[DeviceUse, ...]:
    devices = []
    for line in text.splitlines():
        device, *pairs = line.split()
        use = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        major, minor = map(int, device.split(":"))
        counted = {
            "read_bytes": int(use.get("rbytes", 0)),
            "write_bytes": int(use.get("wbytes", 0)),
            "reads": int(use.get("rios", 0)),
            "writes": int(use.get("wios", 0)),
        }
        if any(counted.values()):
            devices.append(DeviceUse(major, minor, **counted))
    return tuple(devices)


def _hugetlb(directory: _Directory) -> dict[str, HugePageUse]:
    found = {}
    for name in directory.names():
        kind, _, rest = name.partition(".")
        size, _, what = rest.partition(".")
        if kind == "hugetlb" and what in ("current", "usage_in_bytes"):
            usage = directory.number(name) or 0
            peak = usage if what == "current" else directory.number(f"hugetlb.{size}.max_usage_in_bytes") or usage
            found[size] = HugePageUse(usage, peak)
    return found
