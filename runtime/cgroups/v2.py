"""Maps resources to cgroup v2 files (runtime-spec config-linux.md "Unified", cgroup-v2.rst). Zero: leave alone.

The specification has version 1's numbers. The conversions are the ones that Kubernetes runtimes agreed on.
"""

from __future__ import annotations

import math

from runtime.cgroups import v1
from runtime.cgroups.limits import Group, Write, check_swap, cpusets, hugepages, number, tasks
from runtime.errors import SpecError
from runtime.spec.values import CPU, BlockIO, Memory, Resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Set

_CORE_FILES = frozenset({"cgroup"})  # prefix of the files that belong to no controller


def plan(resources: Resources, current: Callable[[str], str], only: Set[str] | None = None) -> list[Group]:
    """Plan the writes that set the limits, in order. Device rules are not included (see `device_filter`).

    `current` reads a file of the existing cgroup, for limits that share a file with one that is left alone. In hybrid
    mode, `only` names the controllers of version 2: nothing is planned or read for the others. Raises `SpecError` for
    contradictory values. net_cls and net_prio, which version 2 does not have, are planned as in version 1, so that they
    fail with the same error as any missing controller.
    """
    if only is not None and "cpu" not in only:
        current = _unread
    return [group for group in _plan(resources, current) if only is None or group[0].controller in only]


def _unread(file: str) -> str:
    """Stand in for reading a file of a version 1 controller, whose limits are removed from the plan anyway."""
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
    """Convert cpu.shares (2 to 262144, default 1024) to cpu.weight (1 to 10000, default 100).

    The curve passes through both ends and both defaults. A straight line would turn 1024 into 39, and containers would
    starve beside everything else that has the default weight.
    """
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    log = math.log2(shares)
    return math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34))


def io_weight(weight: int) -> int:
    """Convert blkio.weight (10 to 1000) to io.weight (1 to 10000)."""
    return 1 + (weight - 10) * 9999 // 990


def swap_max(limit: int, swap: int) -> int | None:
    """Compute memory.swap.max from the limits of memory and of memory plus swap; None: leave alone, -1: "max"."""
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
        # The key becomes a file name in the cgroup's directory and must not lead out of it.
        if "/" in file or ".." in file or not (controller and dot and rest):
            raise SpecError(f"linux.resources.unified.{file}", "expected the name of a cgroup file")
        yield (Write("" if controller in _CORE_FILES else controller, file, value),)
