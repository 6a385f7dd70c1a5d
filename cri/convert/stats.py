"""Converts statistics of containers, sandboxes and filesystems."""

from __future__ import annotations

import os
import time

from cri.v1 import api_pb2
from image.model import FilesystemUsage
from pods.stats.interfaces import Interface
from pods.stats.stats import ContainerStats, SandboxStats
from pods.stats.writable_layers import DiskUse
from runtime.cgroups.usage import MemoryUse, Pressure, Stall, Usage


def container_stats(stats: ContainerStats, mountpoint: str) -> api_pb2.ContainerStats:
    """Convert a container's stats. One that does not run has attributes and writable layer only, as in containerd.

    `mountpoint` is a path on the filesystem of the writable layers.
    """
    config, usage = stats.container.config, stats.usage
    return api_pb2.ContainerStats(
        attributes=api_pb2.ContainerAttributes(
            id=stats.container.id,
            metadata=api_pb2.ContainerMetadata(name=config.metadata.name, attempt=config.metadata.attempt),
            labels=config.labels,
            annotations=config.annotations,
        ),
        cpu=_cpu(usage, stats.taken_at, stats.cpu_rate) if usage else None,
        memory=_memory(usage, stats.taken_at) if usage else None,
        swap=_swap(usage.memory, stats.taken_at) if usage and usage.memory else None,
        io=_io(usage, stats.taken_at) if usage else None,
        writable_layer=filesystem(stats.layer, mountpoint) if stats.layer else None,
    )


def sandbox_stats(stats: SandboxStats, mountpoint: str) -> api_pb2.PodSandboxStats:
    """Convert a sandbox's stats and those of its containers; `mountpoint` as for `container_stats`."""
    config, usage = stats.sandbox.config, stats.usage
    metadata = config.metadata
    processes = 0 if usage is None else usage.tasks
    return api_pb2.PodSandboxStats(
        attributes=api_pb2.PodSandboxAttributes(
            id=stats.sandbox.id,
            metadata=api_pb2.PodSandboxMetadata(
                name=metadata.name, uid=metadata.uid, namespace=metadata.namespace, attempt=metadata.attempt
            ),
            labels=config.labels,
            annotations=config.annotations,
        ),
        linux=api_pb2.LinuxPodSandboxStats(
            cpu=_cpu(usage, stats.taken_at, stats.cpu_rate) if usage else None,
            memory=_memory(usage, stats.taken_at) if usage else None,
            io=_io(usage, stats.taken_at) if usage else None,
            network=_network(stats.interfaces, stats.taken_at) if stats.interfaces else None,
            process=api_pb2.ProcessUsage(timestamp=stats.taken_at, process_count=_number(processes)),
            containers=[container_stats(container, mountpoint) for container in stats.containers],
        ),
    )


def filesystem(use: DiskUse, mountpoint: str) -> api_pb2.FilesystemUsage:
    """Convert the disk use of files on the filesystem of `mountpoint`."""
    return api_pb2.FilesystemUsage(
        timestamp=use.counted_at,
        fs_id=api_pb2.FilesystemIdentifier(mountpoint=mountpoint),
        used_bytes=_number(use.bytes),
        inodes_used=_number(use.inodes),
    )


def image_filesystem(usage: FilesystemUsage) -> api_pb2.FilesystemUsage:
    """Convert the disk use of images."""
    return filesystem(DiskUse(usage.bytes, usage.inodes, time.time_ns()), usage.mountpoint)


def layers_mountpoint(root: str | os.PathLike[str], images: str) -> str:
    """Return the path that names the filesystem of the writable layers, which lie under `root`.

    If the image store is on the same filesystem, it is the store's: kubelet takes two paths for two filesystems.
    """
    return images if os.stat(root).st_dev == os.stat(images).st_dev else os.fspath(root)


def _cpu(usage: Usage, taken_at: int, rate: int | None) -> api_pb2.CpuUsage | None:
    if usage.cpu is None:
        return None
    return api_pb2.CpuUsage(
        timestamp=taken_at,
        usage_core_nano_seconds=_number(usage.cpu.total),
        usage_nano_cores=_number(rate),
        psi=_psi(usage.cpu_pressure),
    )


def _memory(usage: Usage, taken_at: int) -> api_pb2.MemoryUsage | None:
    memory = usage.memory
    if memory is None:
        return None
    return api_pb2.MemoryUsage(
        timestamp=taken_at,
        working_set_bytes=_number(memory.working_set),
        available_bytes=_number(None if memory.limit is None else max(0, memory.limit - memory.working_set)),
        usage_bytes=_number(memory.usage),
        rss_bytes=_number(memory.anon),
        page_faults=_number(memory.faults),
        major_page_faults=_number(memory.major_faults),
        psi=_psi(usage.memory_pressure),
    )


def _swap(memory: MemoryUse, taken_at: int) -> api_pb2.SwapUsage:
    return api_pb2.SwapUsage(
        timestamp=taken_at,
        swap_available_bytes=_number(None if memory.swap_limit is None else max(0, memory.swap_limit - memory.swap)),
        swap_usage_bytes=_number(memory.swap),
    )


def _io(usage: Usage, taken_at: int) -> api_pb2.IoUsage | None:
    return api_pb2.IoUsage(timestamp=taken_at, psi=_psi(usage.io_pressure)) if usage.io_pressure else None


def _psi(pressure: Pressure | None) -> api_pb2.PsiStats | None:
    return api_pb2.PsiStats(Full=_stall(pressure.full), Some=_stall(pressure.some)) if pressure else None


def _stall(stall: Stall) -> api_pb2.PsiData:
    return api_pb2.PsiData(Total=stall.total, Avg10=stall.avg10, Avg60=stall.avg60, Avg300=stall.avg300)


def _network(interfaces: tuple[Interface, ...], taken_at: int) -> api_pb2.NetworkUsage:
    messages = [
        api_pb2.NetworkInterfaceUsage(
            name=interface.name,
            rx_bytes=_number(interface.rx_bytes),
            rx_errors=_number(interface.rx_errors),
            tx_bytes=_number(interface.tx_bytes),
            tx_errors=_number(interface.tx_errors),
        )
        for interface in interfaces
    ]
    return api_pb2.NetworkUsage(timestamp=taken_at, default_interface=messages[0], interfaces=messages)


def _number(value: int | None) -> api_pb2.UInt64Value | None:
    return None if value is None else api_pb2.UInt64Value(value=value)
