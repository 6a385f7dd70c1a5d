"""Maps resources to cgroup v1 files (runtime-spec config-linux.md "Control groups"). Zero means "leave alone"."""

from __future__ import annotations

from runtime.cgroups.limits import Group, Write, check_swap, cpusets, hugepages, tasks
from runtime.errors import SpecError
from runtime.spec.values import CPU, BlockIO, DeviceRule, Memory, NetworkClass, RdmaLimit, Resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def plan(resources: Resources) -> list[Group]:
    """Plan the writes that set the limits, in order. Raises `SpecError` for what version 1 cannot express."""
    if resources.unified:
        raise SpecError("linux.resources.unified", "needs cgroup v2, and this machine uses v1 controllers")
    groups: list[Group] = [(write,) for rule in resources.devices for write in _device(rule)]
    if resources.memory:
        groups += _memory(resources.memory)
    if resources.cpu:
        groups += _cpu(resources.cpu)
    if resources.pids_limit is not None:
        groups.append((Write("pids", "pids.max", tasks(resources.pids_limit)),))
    if resources.block_io:
        groups += _block_io(resources.block_io)
    for limit in resources.hugepage_limits:
        groups += hugepages(limit, "limit_in_bytes")
    if resources.network:
        groups += network_class(resources.network)
    groups += [(rdma(limit),) for limit in resources.rdma]
    return groups


def rdma(limit: RdmaLimit) -> Write:
    """Return the write to rdma.max, which both versions share."""
    handles = "max" if limit.hca_handles is None else str(limit.hca_handles)
    objects = "max" if limit.hca_objects is None else str(limit.hca_objects)
    return Write("rdma", "rdma.max", f"{limit.device} hca_handle={handles} hca_object={objects}")


def _device(rule: DeviceRule) -> Iterator[Write]:
    file = "devices.allow" if rule.allow else "devices.deny"
    major = "*" if rule.major is None else str(rule.major)
    minor = "*" if rule.minor is None else str(rule.minor)
    # Only a bare "a": the kernel ignores numbers and letters after it and changes the default policy.
    if rule.type == "a" and rule.major is None and rule.minor is None and set(rule.access) == set("rwm"):
        yield Write("devices", file, "a")
    else:
        for type_ in "bc" if rule.type == "a" else rule.type:
            yield Write("devices", file, f"{type_} {major}:{minor} {rule.access}")


def _memory(memory: Memory) -> Iterator[Group]:
    limit, swap = memory.limit or 0, memory.swap or 0
    check_swap(limit, swap)
    if limit < 0 and not swap:
        swap = -1  # the limit of memory and swap must not be below that of memory
    writes = []
    if limit:
        writes.append(Write("memory", "memory.limit_in_bytes", str(limit)))
    if swap:
        optional = swap in (-1, limit)
        writes.append(Write("memory", "memory.memsw.limit_in_bytes", str(swap), optional=optional))
    if writes:
        yield tuple(writes)
    if memory.reservation:
        yield (Write("memory", "memory.soft_limit_in_bytes", str(memory.reservation)),)
    if memory.kernel_tcp:
        yield (Write("memory", "memory.kmem.tcp.limit_in_bytes", str(memory.kernel_tcp)),)
    if memory.disable_oom_killer:
        yield (Write("memory", "memory.oom_control", "1"),)
    if memory.swappiness is not None:
        yield (Write("memory", "memory.swappiness", str(memory.swappiness)),)


def _cpu(cpu: CPU) -> Iterator[Group]:
    if cpu.idle is not None:
        yield (Write("cpu", "cpu.idle", str(cpu.idle)),)
    if cpu.shares and cpu.idle != 1:
        yield (Write("cpu", "cpu.shares", str(cpu.shares)),)
    bandwidth = []
    if cpu.period:
        bandwidth.append(Write("cpu", "cpu.cfs_period_us", str(cpu.period)))
    if cpu.quota:
        bandwidth.append(Write("cpu", "cpu.cfs_quota_us", str(cpu.quota)))
    if cpu.burst is not None:
        bandwidth.append(Write("cpu", "cpu.cfs_burst_us", str(cpu.burst)))
    if bandwidth:
        yield tuple(bandwidth)
    realtime = []
    if cpu.realtime_period:
        realtime.append(Write("cpu", "cpu.rt_period_us", str(cpu.realtime_period)))
    if cpu.realtime_runtime:
        realtime.append(Write("cpu", "cpu.rt_runtime_us", str(cpu.realtime_runtime)))
    if realtime:
        yield tuple(realtime)
    yield from cpusets(cpu)


def _block_io(block_io: BlockIO) -> Iterator[Group]:
    if block_io.weight:
        weight = str(block_io.weight)
        yield (Write("blkio", "blkio.weight", weight, Write("blkio", "blkio.bfq.weight", weight)),)
    if block_io.leaf_weight:
        yield (Write("blkio", "blkio.leaf_weight", str(block_io.leaf_weight)),)
    for device in block_io.weight_device:
        number = f"{device.major}:{device.minor}"
        if device.weight:
            value = f"{number} {device.weight}"
            yield (Write("blkio", "blkio.weight_device", value, Write("blkio", "blkio.bfq.weight_device", value)),)
        if device.leaf_weight:
            yield (Write("blkio", "blkio.leaf_weight_device", f"{number} {device.leaf_weight}"),)
    for file, throttled in (
        ("blkio.throttle.read_bps_device", block_io.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", block_io.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", block_io.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", block_io.throttle_write_iops_device),
    ):
        for limit in throttled:
            yield (Write("blkio", file, f"{limit.major}:{limit.minor} {limit.rate}"),)


def network_class(network: NetworkClass) -> Iterator[Group]:
    """Plan the writes for the net_cls and net_prio controllers."""
    if network.class_id:
        yield (Write("net_cls", "net_cls.classid", str(network.class_id)),)
    for each in network.priorities:
        yield (Write("net_prio", "net_prio.ifpriomap", f"{each.name} {each.priority}"),)
