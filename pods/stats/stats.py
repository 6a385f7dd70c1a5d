"""Measures the use of sandboxes and containers: cgroups, writable layers, network interfaces, processes.

Everything is read on request, in separate threads: reading a cgroup's file may wait while the kernel sums the counters
of all CPUs, and reading a directory may wait for a slow disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from pods import handlers
from pods.cgroups.places import container_cgroup, pod_cgroup
from pods.errors import PodError
from pods.model import Container, ContainerState, Sandbox
from pods.stats import holdings
from pods.stats.cpu_rates import CpuRates
from pods.stats.holdings import Holding
from pods.stats.interfaces import Interface, interfaces
from pods.stats.processes import Processes, look_at
from pods.stats.writable_layers import DiskUse, WritableLayers
from runtime.cgroups import Cgroup, Hierarchies
from runtime.cgroups.usage import Usage, read_usage
from runtime.errors import RuntimeCoreError

if TYPE_CHECKING:
    from image.store import ImageStore
    from pods.state.memory import State

_T = TypeVar("_T")
_YOUNG: Final = 60_000_000_000  # nanoseconds; until then the mean since the start is used as the present rate


@dataclass(frozen=True, slots=True)
class ContainerStats:
    """`usage` is None if the container does not run or ended meanwhile. Times are as in `Container`."""

    container: Container
    taken_at: int
    cgroup: str
    usage: Usage | None
    cpu_rate: int | None  # nanoseconds of CPU time per second
    layer: DiskUse | None
    processes: Processes | None = None  # only on request


@dataclass(frozen=True, slots=True)
class SandboxStats:
    """`usage` is the pod's own cgroup's, None if that never existed. `interfaces` is empty on the host's network."""

    sandbox: Sandbox
    taken_at: int
    cgroup: str
    usage: Usage | None
    cpu_rate: int | None
    interfaces: tuple[Interface, ...]
    containers: tuple[ContainerStats, ...]


@dataclass(frozen=True, slots=True)
class _Reading:
    taken_at: int
    cgroup: str
    usage: Usage | None = None
    cpu_rate: int | None = None


class Stats:
    """Reads statistics and keeps the samples for rates. `close` ends the threads."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._rates = CpuRates()
        self._layers = WritableLayers()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stats")
        self._hierarchies: Hierarchies | None = None

    def close(self) -> None:
        self._layers.close()
        self._thread.shutdown(cancel_futures=True)

    async def containers(self, containers: Sequence[Container]) -> list[ContainerStats]:
        """Return the containers' use. A container whose sandbox is gone is left out."""
        layers = await self._writable_layers(containers)
        known = self._with_sandboxes(containers)
        return await self._in_thread(
            lambda: [
                self._container(sandbox, container, layers, detailed=False) for sandbox, container in known
            ]
        )

    async def sandboxes(self, sandboxes: Sequence[Sandbox], *, detailed: bool = False) -> list[SandboxStats]:
        """Return the use of sandboxes and of their containers; with every counter and their processes if `detailed`."""
        inside = {sandbox.id: list(self._state.containers_of(sandbox.id)) for sandbox in sandboxes}
        layers = await self._writable_layers([container for some in inside.values() for container in some])

        def read() -> list[SandboxStats]:
            return [
                self._sandbox(
                    sandbox,
                    tuple(
                        self._container(sandbox, container, layers, detailed=detailed)
                        for container in inside[sandbox.id]
                    ),
                    detailed=detailed,
                )
                for sandbox in sandboxes
            ]

        return await self._in_thread(read)

    async def disk(self) -> DiskUse:
        """Return the sum of all writable layers."""
        counts = (await self._writable_layers([r.container for r in self._state.containers.values()])).values()
        return DiskUse(
            bytes=sum(count.bytes for count in counts),
            inodes=sum(count.inodes for count in counts),
            counted_at=min((count.counted_at for count in counts), default=time.time_ns()),
        )

    async def holdings(self, images: ImageStore) -> list[Holding]:
        """Return what holds the disk. Takes as long as reading all writable layers; the caller may give up."""
        containers = [record.container for record in self._state.containers.values()]
        pods = {record.sandbox.id: record.sandbox for record in self._state.sandboxes.values()}
        known = frozenset(self._state.containers)
        store = await images.accounts({image_id for one in containers for image_id in one.images})
        root, stopped = self._state.settings.root, threading.Event()

        def read() -> list[Holding]:
            of_containers = list(holdings.of_containers(root, containers, pods, stopped))
            return [*of_containers, *holdings.of_rest(root, store, known, stopped)]

        try:
            return [*holdings.of_images(store, containers, pods), *await asyncio.to_thread(read)]
        finally:
            stopped.set()

    async def _in_thread(self, read: Callable[[], _T]) -> _T:
        names = {*self._state.containers, *self._state.sandboxes}

        def forget_and_read() -> _T:
            self._rates.keep(names)
            return read()

        return await asyncio.get_running_loop().run_in_executor(self._thread, forget_and_read)

    def _with_sandboxes(self, containers: Sequence[Container]) -> list[tuple[Sandbox, Container]]:
        records = self._state.sandboxes
        return [(records[one.sandbox_id].sandbox, one) for one in containers if one.sandbox_id in records]

    async def _writable_layers(self, containers: Sequence[Container]) -> dict[str, DiskUse]:
        """Measure writable layers and the image's volumes, which lie beside them and are removed with the container."""
        self._layers.keep(self._state.containers)
        return await self._layers.usage([container.id for container in containers], self._state.settings.container_root)

    # -- in the thread ------------------------------------------------------------------------------------------------

    def _sandbox(
        self, sandbox: Sandbox, containers: tuple[ContainerStats, ...], *, detailed: bool
    ) -> SandboxStats:
        reading = self._read(sandbox.id, pod_cgroup(sandbox), sandbox.created_at, detailed=detailed)
        return SandboxStats(
            sandbox=sandbox,
            taken_at=reading.taken_at,
            cgroup=reading.cgroup,
            usage=reading.usage,
            cpu_rate=reading.cpu_rate,
            interfaces=interfaces(sandbox.infra_pid, sandbox.netns) if sandbox.netns else (),
            containers=containers,
        )

    def _container(
        self, sandbox: Sandbox, container: Container, layers: dict[str, DiskUse], *, detailed: bool
    ) -> ContainerStats:
        path = container_cgroup(sandbox, container.id)
        reading = _Reading(time.time_ns(), path)
        processes = None
        if handlers.has_sandbox(sandbox, self._state.settings.runtime_handlers):
            reading = self._in_sandbox(sandbox, container, detailed=detailed)
        elif container.state is ContainerState.RUNNING:
            reading = self._read(container.id, path, container.started_at, detailed=detailed)
            if detailed and reading.usage is not None:
                processes = self._processes(path, container.pid)
        return ContainerStats(
            container=container,
            taken_at=reading.taken_at,
            cgroup=path,
            usage=reading.usage,
            cpu_rate=reading.cpu_rate,
            layer=layers.get(container.id),
            processes=processes,
        )

    def _in_sandbox(self, sandbox: Sandbox, container: Container, *, detailed: bool) -> _Reading:
        """Read the sandbox's use if this is the only container that runs in it: the host cannot tell several apart."""
        running = [one.id for one in self._state.containers_of(sandbox.id) if one.state is ContainerState.RUNNING]
        path = container_cgroup(sandbox, sandbox.id)
        if running != [container.id]:
            return _Reading(time.time_ns(), path)
        return self._read(container.id, path, container.started_at, detailed=detailed)

    def _read(self, name: str, path: str, begun: int, *, detailed: bool) -> _Reading:
        taken_at, now = time.time_ns(), time.monotonic_ns()
        usage = None
        with contextlib.suppress(RuntimeCoreError):  # the root cgroup is no container's
            usage = read_usage(self._cgroup(path), detailed=detailed)
        if usage is None or usage.cpu is None:
            return _Reading(taken_at, path, usage)
        age = taken_at - begun
        since_begun = now - age if 0 <= age <= _YOUNG else None
        return _Reading(taken_at, path, usage, self._rates.rate(name, now, usage.cpu.total, since_begun))

    def _processes(self, path: str, first: int) -> Processes | None:
        try:
            return look_at(self._cgroup(path).pids(), first)
        except RuntimeCoreError:
            return None

    def _cgroup(self, path: str) -> Cgroup:
        if self._hierarchies is None:
            try:
                self._hierarchies = Hierarchies.usable()
            except RuntimeCoreError as error:
                raise PodError(f"read cgroup {path}: {error}") from error
        return Cgroup.at(self._hierarchies, path)
