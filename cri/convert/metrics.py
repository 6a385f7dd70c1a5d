"""The metrics that kubelet serves at /metrics/cadvisor if it takes them from the runtime (KEP-2371).

Names, types and labels are cAdvisor's, so that dashboards and alerts keep working. Fractional seconds are in
`double_value`; `value` has whole seconds, for kubelets before 1.38.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cri.v1 import api_pb2
from pods.stats.stats import ContainerStats, SandboxStats
from runtime.cgroups.usage import CpuUse, DeviceUse, MemoryUse, Pressure

_LABELS: Final = ("container", "id", "image", "name", "namespace", "pod")
_SECOND: Final = 1_000_000_000
_DEFAULT_PERIOD, _DEFAULT_SHARES = 100_000, 1024  # the kernel's
_COUNTER, _GAUGE = api_pb2.MetricType.COUNTER, api_pb2.MetricType.GAUGE

_Sample = tuple[str, int | float, tuple[str, ...]]  # name, value, values of the metric's own labels


@dataclass(frozen=True, slots=True)
class _Descriptor:
    help: str
    kind: api_pb2.MetricType.ValueType
    labels: tuple[str, ...] = ()


_DESCRIPTORS: Final = {
    "container_last_seen": _Descriptor("When the container was last measured, seconds since the epoch", _GAUGE),
    "container_start_time_seconds": _Descriptor("When the container started, seconds since the epoch", _GAUGE),
    "container_cpu_usage_seconds_total": _Descriptor("CPU time used", _COUNTER, ("cpu",)),
    "container_cpu_user_seconds_total": _Descriptor("CPU time used in user mode", _COUNTER),
    "container_cpu_system_seconds_total": _Descriptor("CPU time used in kernel mode", _COUNTER),
    "container_cpu_cfs_periods_total": _Descriptor("Elapsed periods of the CPU limit", _COUNTER),
    "container_cpu_cfs_throttled_periods_total": _Descriptor("Periods in which the CPU limit was reached", _COUNTER),
    "container_cpu_cfs_throttled_seconds_total": _Descriptor("Time throttled by the CPU limit", _COUNTER),
    "container_memory_usage_bytes": _Descriptor("Memory in use, page cache included", _GAUGE),
    "container_memory_working_set_bytes": _Descriptor("Memory in use without unused page cache", _GAUGE),
    "container_memory_max_usage_bytes": _Descriptor("Peak of memory in use", _GAUGE),
    "container_memory_rss": _Descriptor("Anonymous memory", _GAUGE),
    "container_memory_cache": _Descriptor("Page cache", _GAUGE),
    "container_memory_mapped_file": _Descriptor("Mapped files", _GAUGE),
    "container_memory_swap": _Descriptor("Swap in use", _GAUGE),
    "container_memory_kernel_usage": _Descriptor("Memory that the kernel uses for the container", _GAUGE),
    "container_memory_total_active_file_bytes": _Descriptor("Recently used page cache", _GAUGE),
    "container_memory_total_inactive_file_bytes": _Descriptor("Page cache not used recently", _GAUGE),
    "container_memory_failcnt": _Descriptor("How often the memory limit was hit", _COUNTER),
    "container_memory_failures_total": _Descriptor("Page faults", _COUNTER, ("failure_type", "scope")),
    "container_oom_events_total": _Descriptor("Processes killed because of the memory limit", _COUNTER),
    "container_fs_usage_bytes": _Descriptor("Disk use of the writable layer", _GAUGE, ("device",)),
    "container_fs_limit_bytes": _Descriptor("Size of the writable layer's filesystem", _GAUGE, ("device",)),
    "container_fs_inodes_total": _Descriptor("Inodes of that filesystem", _GAUGE, ("device",)),
    "container_fs_inodes_free": _Descriptor("Free inodes of that filesystem", _GAUGE, ("device",)),
    "container_fs_reads_total": _Descriptor("Reads from a block device", _COUNTER, ("device",)),
    "container_fs_reads_bytes_total": _Descriptor("Bytes read from a block device", _COUNTER, ("device",)),
    "container_fs_writes_total": _Descriptor("Writes to a block device", _COUNTER, ("device",)),
    "container_fs_writes_bytes_total": _Descriptor("Bytes written to a block device", _COUNTER, ("device",)),
    "container_blkio_device_usage_total": _Descriptor(
        "Bytes to and from a block device", _COUNTER, ("device", "major", "minor", "operation")
    ),
    "container_hugetlb_usage_bytes": _Descriptor("Huge pages in use", _GAUGE, ("pagesize",)),
    "container_hugetlb_max_usage_bytes": _Descriptor(
        "Peak of huge pages in use", _GAUGE, ("pagesize",)
    ),
    "container_processes": _Descriptor("Processes", _GAUGE),
    "container_threads": _Descriptor("Threads of all processes", _GAUGE),
    "container_threads_max": _Descriptor("Limit of threads, 0 for none", _GAUGE),
    "container_file_descriptors": _Descriptor("Open file descriptors", _GAUGE),
    "container_sockets": _Descriptor("Open sockets", _GAUGE),
    "container_ulimits_soft": _Descriptor("Soft resource limits of the first process", _GAUGE, ("ulimit",)),
    "container_spec_cpu_period": _Descriptor("Period of the CPU limit, microseconds", _GAUGE),
    "container_spec_cpu_quota": _Descriptor("CPU time per period, microseconds", _GAUGE),
    "container_spec_cpu_shares": _Descriptor("Weight in the competition for CPUs", _GAUGE),
    "container_spec_memory_limit_bytes": _Descriptor("Memory limit, 0 for none", _GAUGE),
    "container_spec_memory_reservation_limit_bytes": _Descriptor("Memory reserved for the container", _GAUGE),
    "container_spec_memory_swap_limit_bytes": _Descriptor("Limit of memory and swap, 0 for none", _GAUGE),
    **{
        f"container_pressure_{resource}_{kind}_seconds_total": _Descriptor(
            f"Time that {who} waited for {resource}", _COUNTER
        )
        for resource in ("cpu", "memory", "io")
        for kind, who in (("waiting", "some task"), ("stalled", "all tasks"))
    },
    **{
        f"container_network_{way}_{what}_total": _Descriptor(
            f"{what} of the pod's interface, {way}", _COUNTER, ("interface",)
        )
        for way in ("receive", "transmit")
        for what in ("bytes", "packets", "errors", "packets_dropped")
    },
}


def metric_descriptors() -> list[api_pb2.MetricDescriptor]:
    """List every metric that `sandbox_metrics` can have."""
    return [
        api_pb2.MetricDescriptor(name=name, help=one.help, label_keys=(*_LABELS, *one.labels))
        for name, one in _DESCRIPTORS.items()
    ]


def sandbox_metrics(stats: SandboxStats, root: str) -> api_pb2.PodSandboxMetrics:
    """Return the metrics of the pod, of its network and of its running containers.

    `root` is a directory on the filesystem of the writable layers.
    """
    metadata = stats.sandbox.config.metadata
    own = ("", stats.cgroup, "", stats.sandbox.id, metadata.namespace, metadata.name)
    return api_pb2.PodSandboxMetrics(
        pod_sandbox_id=stats.sandbox.id,
        metrics=[_metric(sample, own) for sample in _network(stats)],
        container_metrics=[
            _container(one, metadata.namespace, metadata.name, root) for one in stats.containers if one.usage
        ],
    )


def _container(stats: ContainerStats, namespace: str, pod: str, root: str) -> api_pb2.ContainerMetrics:
    container = stats.container
    image = container.config.image.user_specified_image or container.image_ref
    labels = (container.config.metadata.name, stats.cgroup, image, container.id, namespace, pod)
    samples = (*_usage(stats), *_disk(stats, root), *_processes(stats), *_spec(stats))
    return api_pb2.ContainerMetrics(
        container_id=container.id, metrics=[_metric(sample, labels) for sample in samples]
    )


def _metric(sample: _Sample, labels: tuple[str, ...]) -> api_pb2.Metric:
    """Make a metric without a time stamp: the value is as of now."""
    name, value, own = sample
    return api_pb2.Metric(
        name=name,
        metric_type=_DESCRIPTORS[name].kind,
        label_values=(*labels, *own),
        value=api_pb2.UInt64Value(value=int(value)),
        double_value=api_pb2.DoubleValue(value=value) if isinstance(value, float) else None,
    )


def _network(stats: SandboxStats) -> Iterator[_Sample]:
    for interface in stats.interfaces:
        for way, prefix in (("receive", "rx"), ("transmit", "tx")):
            for what, member in (("bytes", "bytes"), ("packets", "packets"), ("errors", "errors"),
                                 ("packets_dropped", "dropped")):  # fmt: skip
                value = getattr(interface, f"{prefix}_{member}")
                yield f"container_network_{way}_{what}_total", value, (interface.name,)


def _usage(stats: ContainerStats) -> Iterator[_Sample]:
    usage = stats.usage
    assert usage is not None, "only of containers that run"
    yield "container_last_seen", time.time(), ()
    if usage.cpu is not None:
        yield from _cpu(usage.cpu)
    if usage.memory is not None:
        yield from _memory(usage.memory)
        yield "container_oom_events_total", usage.oom_kills, ()
    for device in usage.devices:
        yield from _device(device)
    for size, used in usage.hugetlb.items():
        yield "container_hugetlb_usage_bytes", used.usage, (size,)
        yield "container_hugetlb_max_usage_bytes", used.peak, (size,)
    if usage.tasks is not None:
        yield "container_threads", usage.tasks, ()
        yield "container_threads_max", usage.tasks_limit or 0, ()
    yield from _pressure("cpu", usage.cpu_pressure)
    yield from _pressure("memory", usage.memory_pressure)
    yield from _pressure("io", usage.io_pressure)


def _cpu(cpu: CpuUse) -> Iterator[_Sample]:
    yield "container_cpu_usage_seconds_total", cpu.total / _SECOND, ("total",)
    yield "container_cpu_user_seconds_total", cpu.user / _SECOND, ()
    yield "container_cpu_system_seconds_total", cpu.system / _SECOND, ()
    yield "container_cpu_cfs_periods_total", cpu.periods, ()
    yield "container_cpu_cfs_throttled_periods_total", cpu.throttled_periods, ()
    yield "container_cpu_cfs_throttled_seconds_total", cpu.throttled / _SECOND, ()


def _memory(memory: MemoryUse) -> Iterator[_Sample]:
    yield "container_memory_usage_bytes", memory.usage, ()
    yield "container_memory_working_set_bytes", memory.working_set, ()
    yield "container_memory_max_usage_bytes", memory.peak, ()
    yield "container_memory_rss", memory.anon, ()
    yield "container_memory_cache", memory.file, ()
    yield "container_memory_mapped_file", memory.mapped, ()
    yield "container_memory_swap", memory.swap, ()
    yield "container_memory_kernel_usage", memory.kernel, ()
    yield "container_memory_total_active_file_bytes", memory.active_file, ()
    yield "container_memory_total_inactive_file_bytes", memory.inactive_file, ()
    yield "container_memory_failcnt", memory.failures, ()
    for scope in ("container", "hierarchy"):  # the two do not differ: a container has no child cgroups
        yield "container_memory_failures_total", memory.faults, ("pgfault", scope)
        yield "container_memory_failures_total", memory.major_faults, ("pgmajfault", scope)


def _device(use: DeviceUse) -> Iterator[_Sample]:
    name, numbers = _device_name(use.major, use.minor), (str(use.major), str(use.minor))
    yield "container_fs_reads_total", use.reads, (name,)
    yield "container_fs_reads_bytes_total", use.read_bytes, (name,)
    yield "container_fs_writes_total", use.writes, (name,)
    yield "container_fs_writes_bytes_total", use.write_bytes, (name,)
    yield "container_blkio_device_usage_total", use.read_bytes, (name, *numbers, "Read")
    yield "container_blkio_device_usage_total", use.write_bytes, (name, *numbers, "Write")


def _pressure(resource: str, pressure: Pressure | None) -> Iterator[_Sample]:
    if pressure is not None:
        yield f"container_pressure_{resource}_waiting_seconds_total", pressure.some.total / _SECOND, ()
        yield f"container_pressure_{resource}_stalled_seconds_total", pressure.full.total / _SECOND, ()


def _disk(stats: ContainerStats, root: str) -> Iterator[_Sample]:
    number, whole = os.stat(root).st_dev, os.statvfs(root)
    device = (_device_name(os.major(number), os.minor(number)),)
    if stats.layer is not None:
        yield "container_fs_usage_bytes", stats.layer.bytes, device
    yield "container_fs_limit_bytes", whole.f_blocks * whole.f_frsize, device
    yield "container_fs_inodes_total", whole.f_files, device
    yield "container_fs_inodes_free", whole.f_ffree, device


def _processes(stats: ContainerStats) -> Iterator[_Sample]:
    processes = stats.processes
    if processes is None:
        return
    yield "container_processes", processes.count, ()
    yield "container_file_descriptors", processes.descriptors, ()
    yield "container_sockets", processes.sockets, ()
    if processes.open_files_limit is not None:
        yield "container_ulimits_soft", processes.open_files_limit, ("max_open_files",)


def _spec(stats: ContainerStats) -> Iterator[_Sample]:
    container, resources = stats.container, stats.container.resources
    yield "container_start_time_seconds", container.started_at / _SECOND, ()
    yield "container_spec_cpu_period", resources.cpu_period or _DEFAULT_PERIOD, ()
    if resources.cpu_quota > 0:
        yield "container_spec_cpu_quota", resources.cpu_quota, ()
    yield "container_spec_cpu_shares", resources.cpu_shares or _DEFAULT_SHARES, ()
    yield "container_spec_memory_limit_bytes", max(0, resources.memory_limit_in_bytes), ()
    yield "container_spec_memory_reservation_limit_bytes", 0, ()  # not in CRI
    yield "container_spec_memory_swap_limit_bytes", max(0, resources.memory_swap_limit_in_bytes), ()


@lru_cache(maxsize=256)
def _device_name(major: int, minor: int) -> str:
    """Return the node in /dev, or the numbers for something that is no block device."""
    place = f"/sys/dev/block/{major}:{minor}"
    return f"/dev/{os.path.basename(os.path.realpath(place))}" if os.path.exists(place) else f"{major}:{minor}"
