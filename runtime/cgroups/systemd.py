"""Describes a container's cgroup to systemd: its slice and scope, and its limits as properties of that unit.

systemd owns the cgroup tree except for what it delegates. A container gets a scope (systemd.scope(5)) with
Delegate=yes, whose files the runtime writes as it does without systemd. systemd must know the limits nevertheless,
because it writes them again when it reconsiders the tree (`daemon-reload`).

Pure functions. The daemon (`pods.cgroups.units`) and `crisp-oci --systemd-cgroup` make the calls, with the messages
of `runtime.cgroups.systemd_bus`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from linux import cpu_lists
from runtime.cgroups.v2 import cpu_weight, io_weight, swap_max
from runtime.errors import SpecError
from runtime.spec.values import CPU, DeviceRule, Memory, Resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Property: TypeAlias = tuple[str, str, Any]  # name, D-Bus signature, value

INFINITY: Final = 2**64 - 1
_SLICE: Final = re.compile(r"[A-Za-z0-9:_.\\@]+(-[A-Za-z0-9:_.\\@]+)*\.slice")
_NAME_BYTES: Final = 255
_USUAL_PERIOD: Final = 100_000  # microseconds, the kernel's default
_PERCENT: Final = 10_000  # microseconds per second


@dataclass(frozen=True, slots=True)
class Scope:
    """The systemd unit of a container: `name` ends in ".scope", `slice` contains it."""

    slice: str
    name: str

    @property
    def path(self) -> str:
        """The scope's cgroup, relative to the hierarchies' mount points. Raises `SpecError`."""
        return f"{slice_path(self.slice)}/{self.name}"


def slice_path(name: str, member: str = "linux.cgroupsPath") -> str:
    """Return the cgroup of a slice, "a-b.slice" -> "/a.slice/a-b.slice" (systemd.slice(5)); "" for "-.slice", the root.

    Raises `SpecError` for `member` if `name` is not the name of a slice.
    """
    if name == "-.slice":
        return ""
    if not _SLICE.fullmatch(name) or len(name) > _NAME_BYTES:
        raise SpecError(member, f"{name!r} is not the name of a systemd slice such as 'a-b.slice'")
    parts = name.removesuffix(".slice").split("-")
    return "".join(f"/{'-'.join(parts[:count])}.slice" for count in range(1, len(parts) + 1))


def scope_properties(
    scope: Scope, description: str, pids: Sequence[int], resources: Resources, *, pure_v2: bool, devices: str = ""
) -> list[Property]:
    """Return the properties of a new scope for StartTransientUnit (org.freedesktop.systemd1(5)).

    `pids` are its first processes; `devices` is the text of /proc/devices, which device rules need on version 1.
    """
    io = "IO" if pure_v2 else "BlockIO"
    limits = limit_properties(resources, pure_v2=pure_v2)
    if all(name != "TasksMax" for name, _, _ in limits):
        limits.append(("TasksMax", "t", INFINITY))  # the default is a percentage of the machine's maximum
    return [
        ("Description", "s", description),
        ("Slice", "s", scope.slice),
        ("PIDs", "au", list(pids)),
        ("Delegate", "b", True),
        # With them systemd would stop it at shutdown with all other units, before kubelet has ended its pods.
        ("DefaultDependencies", "b", False),
        ("CollectMode", "s", "inactive-or-failed"),
        *((f"{kind}Accounting", "b", True) for kind in ("CPU", "Memory", io, "Tasks")),
        *(() if pure_v2 else _device_properties(resources.devices, devices)),
        *limits,
    ]


def limit_properties(resources: Resources, *, pure_v2: bool) -> list[Property]:
    """Return the limits that systemd has a property for. Raises `SpecError` for contradictory ones."""
    found: list[Property] = []
    if resources.memory:
        found += _memory(resources.memory, pure_v2=pure_v2)
    if resources.cpu:
        found += _cpu(resources.cpu, pure_v2=pure_v2)
    if resources.pids_limit is not None:
        found.append(("TasksMax", "t", _bound(resources.pids_limit or 1)))
    if resources.block_io and resources.block_io.weight:
        weight = resources.block_io.weight
        found.append(("IOWeight", "t", io_weight(weight)) if pure_v2 else ("BlockIOWeight", "t", weight))
    for file, value in resources.unified.items():
        if convert := _UNIFIED.get(file):
            found += convert(file, value)
    return found


def _bound(limit: int) -> int:
    return INFINITY if limit < 0 else limit


def _memory(memory: Memory, *, pure_v2: bool) -> Iterator[Property]:
    if memory.limit:
        yield ("MemoryMax" if pure_v2 else "MemoryLimit", "t", _bound(memory.limit))
    if not pure_v2:
        return
    if memory.reservation:
        yield ("MemoryLow", "t", _bound(memory.reservation))
    swap = swap_max(memory.limit or 0, memory.swap or 0)
    if swap is not None:
        yield ("MemorySwapMax", "t", _bound(swap))


def _cpu(cpu: CPU, *, pure_v2: bool) -> Iterator[Property]:
    if pure_v2 and cpu.idle == 1:
        yield ("CPUWeight", "t", 0)
    elif cpu.shares:
        yield ("CPUWeight", "t", cpu_weight(cpu.shares)) if pure_v2 else ("CPUShares", "t", cpu.shares)
    if cpu.period:
        yield ("CPUQuotaPeriodUSec", "t", cpu.period)
    if cpu.quota:
        yield _quota(cpu.quota, cpu.period or _USUAL_PERIOD)
    if pure_v2:  # systemd does not manage version 1's cpuset controller
        if cpu.cpus:
            yield ("AllowedCPUs", "ay", _mask(cpu.cpus, "linux.resources.cpu.cpus"))
        if cpu.mems:
            yield ("AllowedMemoryNodes", "ay", _mask(cpu.mems, "linux.resources.cpu.mems"))


def _quota(quota: int, period: int) -> Property:
    if quota < 0:
        return ("CPUQuotaPerSecUSec", "t", INFINITY)
    # systemd keeps whole percents. Round up, so that a daemon-reload never leaves less than what was asked for.
    percents = -(-quota * 1_000_000 // (period * _PERCENT))
    return ("CPUQuotaPerSecUSec", "t", percents * _PERCENT)


def _mask(cpus: str, member: str) -> bytes:
    """Convert a list such as "0-3,7" to systemd's bit mask, lowest byte first."""
    try:
        bits = sum(1 << number for number in cpu_lists.numbers(cpus))
    except ValueError as error:
        raise SpecError(member, str(error)) from error
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def _limit_of(name: str) -> Callable[[str, str], list[Property]]:
    def convert(file: str, value: str) -> list[Property]:
        return [(name, "t", INFINITY if value == "max" else _number(file, value))]

    return convert


def _mask_of(name: str) -> Callable[[str, str], list[Property]]:
    return lambda file, value: [(name, "ay", _mask(value, f"linux.resources.unified.{file}"))] if value else []


def _bandwidth(file: str, value: str) -> list[Property]:
    quota, _, period = value.partition(" ")
    microseconds = _number(file, period) if period else _USUAL_PERIOD
    quotas = _quota(-1 if quota == "max" else _number(file, quota), microseconds)
    return [("CPUQuotaPeriodUSec", "t", microseconds), quotas]


def _number(file: str, value: str) -> int:
    if not value.isdecimal():
        raise SpecError(f"linux.resources.unified.{file}", f"{value!r} is not a number")
    return int(value)


_UNIFIED: Final[Mapping[str, Callable[[str, str], list[Property]]]] = {
    "cpu.max": _bandwidth,
    "cpu.weight": _limit_of("CPUWeight"),
    "cpuset.cpus": _mask_of("AllowedCPUs"),
    "cpuset.mems": _mask_of("AllowedMemoryNodes"),
    "memory.high": _limit_of("MemoryHigh"),
    "memory.low": _limit_of("MemoryLow"),
    "memory.max": _limit_of("MemoryMax"),
    "memory.min": _limit_of("MemoryMin"),
    "memory.swap.max": _limit_of("MemorySwapMax"),
    "pids.max": _limit_of("TasksMax"),
}


def _device_properties(rules: Sequence[DeviceRule], devices: str) -> Iterator[Property]:
    """Build device properties for version 1. On version 2 the runtime attaches its own filter.

    Without them systemd would write "all devices" into the delegated cgroup on a reload. A deny rule after allow rules
    cannot be expressed: the kernel file has it only until systemd writes again.
    """
    allowed = [rule for rule in rules if rule.allow]
    if not rules or any(rule.type == "a" and rule.major is None and rule.minor is None for rule in allowed):
        return
    classes = _device_classes(devices)
    entries = [
        (node, rule.access)
        for rule in allowed
        for kind in ("bc" if rule.type == "a" else rule.type)
        if (node := _device_node(kind, rule, classes))
    ]
    yield ("DevicePolicy", "s", "strict")
    yield ("DeviceAllow", "a(ss)", entries)


def _device_node(kind: str, rule: DeviceRule, classes: Mapping[tuple[str, int], str]) -> str:
    word = {"b": "block", "c": "char", "u": "char"}.get(kind, "")
    if not word:
        return ""
    if rule.major is None:
        return f"{word}-*"
    if rule.minor is None:
        name = classes.get((word, rule.major), "")
        return name and f"{word}-{name}"
    return f"/dev/{word}/{rule.major}:{rule.minor}"


def _device_classes(text: str) -> dict[tuple[str, int], str]:
    """Parse /proc/devices (proc(5)): the names of major numbers."""
    kind, found = "", {}
    for line in text.splitlines():
        if line.endswith(" devices:"):
            kind = "char" if line.startswith("Character") else "block"
        elif line.strip():
            number, name = line.split(None, 1)
            found[kind, int(number)] = name
    return found
