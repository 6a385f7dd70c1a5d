"""Implements `crisp-oci events`: prints a container's statistics and OOM kills, one JSON object per line."""

from __future__ import annotations

import json
import select

from linux import syscalls
from runtime.cgroups.usage import MemoryUse, Usage, read_usage
from runtime.command.flags import Flag, Options, UsageError
from runtime.command.invocation import Context, only
from runtime.command.removal import current_status
from runtime.errors import NotSupported, RuntimeCoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

FLAGS: Final = (
    Flag("interval", argument="TIME", help="time between statistics: 5s (default), 500ms, 1m"),
    Flag("stats", help="print the statistics once and exit"),
)
ARGUMENTS: Final = "ID"
_UNITS: Final = (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0))
_UNLIMITED: Final = 2**63 - 4096  # how version 1 shows "no limit"; callers know this value


def run(context: Context, options: Options, operands: list[str]) -> int:
    seconds = interval(options.text("interval", "5s"))
    entry = context.store.existing(only(operands, "ID"))
    record = entry.load()
    if current_status(entry, record) == "stopped":
        raise RuntimeCoreError(f"container with id {record.id} is not running")
    if not record.cgroup:
        raise NotSupported("read statistics of", record.id, "it has no cgroup of its own")
    cgroup = record.group()
    pidfd = syscalls.pidfd_open(record.pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    kills = cgroup.oom_kills()
    while True:
        usage = read_usage(cgroup)
        if usage is not None:
            _print({"type": "stats", "id": record.id, "data": statistics(usage)})
        if options.switch("stats"):
            return 0
        ended = bool(poll.poll(seconds * 1000))
        if (now := cgroup.oom_kills()) > kills:
            _print({"type": "oom", "id": record.id})
            kills = now
        if ended:
            return 0


def interval(text: str) -> float:
    """Convert a duration such as 5s to seconds. Raises UsageError."""
    for suffix, factor in _UNITS:
        number = text.removesuffix(suffix)
        if number != text and number.replace(".", "", 1).isdecimal() and float(number) > 0:
            return float(number) * factor
    raise UsageError(f"--interval: expected a duration such as 5s, got {text!r}")


def statistics(usage: Usage) -> dict[str, Any]:
    """Convert to runc's names, as far as crisp has the values. Nanoseconds and bytes."""
    data: dict[str, Any] = {"cpu": {}, "memory": {}, "pids": {"current": usage.tasks or 0}, "blkio": {}, "hugetlb": {}}
    if usage.tasks_limit is not None:
        data["pids"]["limit"] = usage.tasks_limit
    if cpu := usage.cpu:
        throttling = {"periods": cpu.periods, "throttledPeriods": cpu.throttled_periods, "throttledTime": cpu.throttled}
        data["cpu"] = {
            "usage": {"total": cpu.total, "kernel": cpu.system, "user": cpu.user},
            "throttling": {key: value for key, value in throttling.items() if value},
        }
    if usage.memory is not None:
        data["memory"] = _memory(usage.memory)
    for direction in ("Read", "Write"):
        name = f"{direction.lower()}_bytes"
        entries = [
            {"major": device.major, "minor": device.minor, "op": direction, "value": getattr(device, name)}
            for device in usage.devices
        ]
        data["blkio"].setdefault("ioServiceBytesRecursive", []).extend(entries)
    data["hugetlb"] = {size: {"usage": used} for size, used in usage.hugetlb.items()}
    data["intel_rdt"] = {}
    data["network_interfaces"] = None
    return data


def _memory(memory: MemoryUse) -> dict[str, Any]:
    def limited(limit: int | None) -> int:
        return _UNLIMITED if limit is None else limit

    usage = {"limit": limited(memory.limit), "usage": memory.usage, "max": memory.peak, "failcnt": memory.failures}
    return {
        "cache": memory.file,
        "usage": usage,
        "swap": {"limit": limited(memory.swap_limit), "usage": memory.swap, "failcnt": 0},
        "kernel": {"limit": _UNLIMITED, "usage": memory.kernel, "failcnt": 0},
        "kernelTCP": {"limit": _UNLIMITED, "failcnt": 0},
        "raw": {
            "anon": memory.anon,
            "file": memory.file,
            "mapped_file": memory.mapped,
            "active_file": memory.active_file,
            "inactive_file": memory.inactive_file,
            "pgfault": memory.faults,
            "pgmajfault": memory.major_faults,
        },
    }


def _print(event: dict[str, Any]) -> None:
    print(json.dumps(event, separators=(",", ":")), flush=True)
