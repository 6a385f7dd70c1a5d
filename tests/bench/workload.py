"""What is asked of every runtime alike: pods of one container, commands in them, and their removal, each call timed."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio

from cri.v1 import api_pb2, api_pb2_grpc
from tests.bench.layouts import BUSYBOX
from tests.bench.peers import PeerFailed

Item = TypeVar("Item")

CALL_SECONDS = 120.0  # a pull of the largest image on a busy machine
_IMAGE_CALLS = ("PullImage", "RemoveImage")
_SLEEP = ("sleep", "86400")


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod and its first container."""

    id: str
    container_id: str
    log: Path


class Client:
    """Calls on one runtime. Times are in milliseconds, by the name of the call. Raises PeerFailed."""

    def __init__(self, address: str, logs: Path, cgroup_parent: str) -> None:
        self._address = address
        self._connect()
        self._logs = logs
        self._cgroup_parent = cgroup_parent
        self._numbers = itertools.count()

    def _connect(self) -> None:
        # Metrics of 250 pods are more than a client of gRPC takes unless told so; kubelet takes 16 MiB.
        options = (("grpc.default_authority", "localhost"), ("grpc.max_receive_message_length", 16 << 20))
        self._channel = grpc.aio.insecure_channel(self._address, options=options)
        self._runtime: Any = api_pb2_grpc.RuntimeServiceStub(self._channel)
        self._images: Any = api_pb2_grpc.ImageServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close(None)

    async def connect_again(self) -> None:
        """Forget the connection: after a restart of the daemon gRPC would wait a while before it tries again."""
        await self.close()
        self._connect()

    async def version(self) -> dict[str, float]:
        """The smallest call there is: what the client, gRPC and the daemon's server cost by themselves."""
        _, taken = await self._timed("Version", api_pb2.VersionRequest())
        return {"Version": taken}

    async def run_pod(
        self, command: Sequence[str] = _SLEEP, *, more: Sequence[str] = (), pull: str = ""
    ) -> tuple[Pod, dict[str, float]]:
        """A new pod whose container runs `command`. `more` are the names of further containers, which sleep.

        `pull` is an image for the container that is pulled once the sandbox runs, as kubelet does.
        """
        name = f"bench-{next(self._numbers)}"
        logs = self._logs / name
        logs.mkdir(parents=True)
        config = api_pb2.PodSandboxConfig(
            metadata=api_pb2.PodSandboxMetadata(name=name, uid=str(uuid.uuid4()), namespace="bench"),
            hostname=name,
            log_directory=str(logs),
            linux=api_pb2.LinuxPodSandboxConfig(cgroup_parent=self._cgroup_parent),
        )
        pod, sandbox_ms = await self._timed("RunPodSandbox", api_pb2.RunPodSandboxRequest(config=config))
        times = {"RunPodSandbox": sandbox_ms}
        if pull:
            times |= await self.pull(pull)
        image = pull or BUSYBOX
        container_id, rest = await self._run_container(pod.pod_sandbox_id, config, "main", command, image)
        for other in more:
            await self._run_container(pod.pod_sandbox_id, config, other, _SLEEP)
        times |= rest
        return Pod(pod.pod_sandbox_id, container_id, logs / "main.log"), times | {"pod start": sum(times.values())}

    async def _run_container(
        self,
        pod_id: str,
        pod_config: api_pb2.PodSandboxConfig,
        name: str,
        command: Sequence[str],
        image: str = BUSYBOX,
    ) -> tuple[str, dict[str, float]]:
        config = _container(name, command, image)
        request = api_pb2.CreateContainerRequest(pod_sandbox_id=pod_id, config=config, sandbox_config=pod_config)
        container, create_ms = await self._timed("CreateContainer", request)
        start = api_pb2.StartContainerRequest(container_id=container.container_id)
        _, start_ms = await self._timed("StartContainer", start)
        return container.container_id, {"CreateContainer": create_ms, "StartContainer": start_ms}

    async def lists(self) -> dict[str, float]:
        """What kubelet asks every second, to learn what has changed."""
        _, pods_ms = await self._timed("ListPodSandbox", api_pb2.ListPodSandboxRequest())
        _, containers_ms = await self._timed("ListContainers", api_pb2.ListContainersRequest())
        return {"ListPodSandbox": pods_ms, "ListContainers": containers_ms}

    async def pods(self) -> int:
        """How many pods the runtime knows."""
        return len((await self._timed("ListPodSandbox", api_pb2.ListPodSandboxRequest()))[0].items)

    async def stop_container(self, pod: Pod) -> None:
        """Kill the pod's container."""
        await self._timed("StopContainer", api_pb2.StopContainerRequest(container_id=pod.container_id, timeout=0))

    async def remove_pod(self, pod: Pod) -> dict[str, float]:
        """End a pod with its container, as kubelet's garbage collection would."""
        _, stop_ms = await self._timed("StopPodSandbox", api_pb2.StopPodSandboxRequest(pod_sandbox_id=pod.id))
        _, remove_ms = await self._timed("RemovePodSandbox", api_pb2.RemovePodSandboxRequest(pod_sandbox_id=pod.id))
        return {"StopPodSandbox": stop_ms, "RemovePodSandbox": remove_ms, "pod end": stop_ms + remove_ms}

    async def pull(self, name: str) -> dict[str, float]:
        _, taken = await self._timed("PullImage", api_pb2.PullImageRequest(image=api_pb2.ImageSpec(image=name)))
        return {"PullImage": taken}

    async def remove_image(self, name: str) -> dict[str, float]:
        _, taken = await self._timed("RemoveImage", api_pb2.RemoveImageRequest(image=api_pb2.ImageSpec(image=name)))
        return {"RemoveImage": taken}

    async def stats(self) -> dict[str, float]:
        """What everybody uses, in the two ways that kubelet may ask."""
        return await self.container_stats() | await self.pod_stats()

    async def container_stats(self) -> dict[str, float]:
        """Of every container, as kubelet asks unless PodAndContainerStatsFromCRI is on."""
        _, taken = await self._timed("ListContainerStats", api_pb2.ListContainerStatsRequest())
        return {"ListContainerStats": taken}

    async def pod_stats(self) -> dict[str, float]:
        """Of every pod with its containers."""
        _, taken = await self._timed("ListPodSandboxStats", api_pb2.ListPodSandboxStatsRequest())
        return {"ListPodSandboxStats": taken}

    async def metrics(self) -> dict[str, float]:
        """cAdvisor's metrics of all pods; nothing from a runtime that has not this call."""
        try:
            _, taken = await self._timed("ListPodSandboxMetrics", api_pb2.ListPodSandboxMetricsRequest())
        except PeerFailed as error:
            if grpc.StatusCode.UNIMPLEMENTED.name not in str(error):
                raise
            return {}
        return {"ListPodSandboxMetrics": taken}

    async def execute(self, pod: Pod) -> dict[str, float]:
        """`true` by ExecSync."""
        request = api_pb2.ExecSyncRequest(container_id=pod.container_id, cmd=["true"], timeout=30)
        reply, taken = await self._timed("ExecSync", request)
        if reply.exit_code != 0:
            raise PeerFailed(f"exec true at {self._address}: exit code {reply.exit_code}: {reply.stderr!r}")
        return {"ExecSync": taken}

    async def _timed(self, method: str, request: Any) -> tuple[Any, float]:
        before = time.perf_counter()
        stub = self._images if method in _IMAGE_CALLS else self._runtime
        try:
            reply = await getattr(stub, method)(request, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise PeerFailed(f"{method} at {self._address}: {error.code().name}: {error.details()}") from None
        return reply, (time.perf_counter() - before) * 1000


async def at_a_time(width: int, items: Iterable[Item], act: Callable[[Item], Awaitable[None]]) -> None:
    """Act on every item, on `width` of them at any moment."""
    left = iter(items)

    async def work() -> None:
        for item in left:
            await act(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(width):
            group.create_task(work())


def _container(name: str, command: Sequence[str], image: str) -> api_pb2.ContainerConfig:
    resources = api_pb2.LinuxContainerResources(cpu_shares=102, memory_limit_in_bytes=64 << 20)
    return api_pb2.ContainerConfig(
        metadata=api_pb2.ContainerMetadata(name=name),
        image=api_pb2.ImageSpec(image=image),
        command=command,
        log_path=f"{name}.log",
        linux=api_pb2.LinuxContainerConfig(resources=resources),
    )
