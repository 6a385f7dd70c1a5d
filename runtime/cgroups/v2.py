"""Resources -> files of cgroup version 2 (runtime-spec config-linux.md "Unified", cgroup-v2.rst). Zero: leave alone.

The specification's numbers are version 1's; the conversions here are those which Kubernetes' runtimes agreed on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Set

from runtime.cgroups import v1
from runtime.cgroups.limits import Group, Write, check_swap, cpusets, hugepages, number, tasks
from runtime.errors import SpecError
from runtime.spec.values import CPU, BlockIO, Memory, Resources

_CORE_FILES = frozenset({"cgroup"})  # the prefix of files that no controller owns


def plan(resources: Resources, current: Callable[[str], str], only: Set[str] | None = None) -> list[Group]:
    """The writes that put the limits into force, in order; device rules are not among them (`devices_bpf`).

    `current` reads a file of the cgroup as it is, for limits which share a file with one that is left alone. `only`
    names the controllers that version 2 has where others are version 1's: nothing is planned, or read, of those.
    Raises `SpecError` for senseless values. net_cls and net_prio, which version 2 lacks, are planned as version 1's, so
    that the lack of their controllers is told like that of any other.
    """
    if only is not None and "cpu" not in only:
        current = _unread
    return [group for group in _plan(resources, current) if only is None or group[0].controller in only]


def _unread(file: str) -> str:
    """For the limits of another hierarchy's controller, which are not in the plan in the end."""
    return "max"


def _plan(resources: Resources, current: Callable[[str], str]) -> list[Group]:
    groups: list[Group] = []
    if resources.memory:
        groups += _memory(resources.memory)
    if resources.cpu:
        groups += _cpu(resources.cpu, current)
    if resources.pids_limit is not None:
        groups.append((Write("pids", "pids.max", tasks(resources.pids_limit)),))
    if resources.block_io:
        groups += _block_io(resources.block_io)
    for limit in resources.hugepage_limits:
        groups += hugepages(limit, "max")
    if resources.network:
        groups += v1.network_class(resources.network)
    groups += [(v1.rdma(limit),) for limit in resources.rdma]
    groups += _unified(resources.unified)
    return groups


def cpu_weight(shares: int) -> int:
    """cpu.shares (2 to 262144, default 1024) as cpu.weight (1 to 10000, default 100).

    The curve goes through both ends and both defaults; a straight line would turn 1024 into 39 and starve containers
    against everything else that has the default weight.
    """
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    log = math.log2(shares)
    return math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34))


def io_weight(weight: int) -> int:
    """blkio.weight (10 to 1000) as io.weight (1 to 10000)."""
    return 1 + (weight - 10) * 9999 // 990


def swap_max(limit: int, swap: int) -> int | None:
    """memory.swap.max for a limit of memory and one of memory and swap together; None leaves it alone, -1 is "max"."""
    check_swap(limit, swap)
    if swap < 0 or (limit < 0 and not swap):
        return -1
    return swap - limit if swap else None


def _memory(memory: Memory) -> Iterator[Group]:
    limit = memory.limit or 0
    swap = swap_max(limit, memory.swap or 0)
    if swap is not None:
        yield (Write("memory", "memory.swap.max", number(swap), optional=swap <= 0),)
    if limit:
        yield (Write("memory", "memory.max", number(limit)),)
    if memory.reservation:
        yield (Write("memory", "memory.low", number(memory.reservation)),)


def _cpu(cpu: CPU, current: Callable[[str], str]) -> Iterator[Group]:
    if cpu.idle is not None:
        yield (Write("cpu", "cpu.idle", str(cpu.idle)),)
    if cpu.shares and cpu.idle != 1:  # an idle group has no weight
        yield (Write("cpu", "cpu.weight", str(cpu_weight(cpu.shares))),)
    bandwidth = []
    if cpu.quota or cpu.period:
        quota = number(cpu.quota) if cpu.quota else current("cpu.max").partition(" ")[0]
        bandwidth.append(Write("cpu", "cpu.max", f"{quota} {cpu.period}" if cpu.period else quota))
    if cpu.burst is not None:
        bandwidth.append(Write("cpu", "cpu.max.burst", str(cpu.burst)))
    if bandwidth:
        yield tuple(bandwidth)
    yield from cpusets(cpu)


def _block_io(block_io: BlockIO) -> Iterator[Group]:
    if block_io.weight:
        proportional = Write("io", "io.weight", str(io_weight(block_io.weight)))
        yield (Write("io", "io.bfq.weight", str(block_io.weight), fallback=proportional),)
    for device in block_io.weight_device:
        if device.weight:
            yield (Write("io", "io.bfq.weight", f"{device.major}:{device.minor} {device.weight}"),)
    for key, throttled in (
        ("rbps", block_io.throttle_read_bps_device),
        ("wbps", block_io.throttle_write_bps_device),
        ("riops", block_io.throttle_read_iops_device),
        ("wiops", block_io.throttle_write_iops_device),
    ):
        for limit in throttled:
            rate = limit.rate or "max"
            yield (Write("io", "io.max", f"{limit.major}:{limit.minor} {key}={rate}"),)


def _unified(unified: Mapping[str, str]) -> Iterator[Group]:
    for file, value in unified.items():
        controller, dot, rest = file.partition(".")
        # The key becomes a file name under the cgroup's directory: it must not lead out of there.
        if "/" in file or ".." in file or not (controller and dot and rest):
            raise SpecError(f"linux.resources.unified.{file}", "expected the name of a cgroup file")
        yield (Write("" if controller in _CORE_FILES else controller, file, value),)
