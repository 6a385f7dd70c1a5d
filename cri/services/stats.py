"""ContainerStats, PodSandboxStats, and their lists, also in pages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from cri.convert import fields
from cri.convert.stats import container_stats, layers_mountpoint, sandbox_stats
from cri.services.lists import by_id, has_labels, pages
from cri.v1 import api_pb2
from pods.errors import NotFound, Unavailable
from pods.model import Container, Sandbox, SandboxState

if TYPE_CHECKING:
    from cri.services.node import Node


class StatsCalls:
    """The calls for resource use of pods and containers."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def ContainerStats(self, request: api_pb2.ContainerStatsRequest) -> api_pb2.ContainerStatsResponse:
        """Return one container's stats; NOT_FOUND for an unknown id."""
        container = self._node.container(fields.required("container_id", request.container_id))
        found = await self._of_containers([container])
        if not found:
            raise NotFound(f"read stats of container {container.id}: its pod sandbox was removed meanwhile")
        return api_pb2.ContainerStatsResponse(stats=found[0])

    async def ListContainerStats(
        self, request: api_pb2.ListContainerStatsRequest
    ) -> api_pb2.ListContainerStatsResponse:
        """List stats of the containers that the filter selects, running or not."""
        return api_pb2.ListContainerStatsResponse(
            stats=await self._of_containers(self._select_containers(request.filter))
        )

    async def StreamContainerStats(
        self, request: api_pb2.StreamContainerStatsRequest
    ) -> AsyncIterator[api_pb2.StreamContainerStatsResponse]:
        """List containers' stats in pages."""
        for page in pages(await self._of_containers(self._select_containers(request.filter))):
            yield api_pb2.StreamContainerStatsResponse(container_stats=page)

    async def PodSandboxStats(self, request: api_pb2.PodSandboxStatsRequest) -> api_pb2.PodSandboxStatsResponse:
        """Return one sandbox's stats; NOT_FOUND for an unknown id, UNAVAILABLE if it is not ready."""
        sandbox = self._node.sandbox(fields.required("pod_sandbox_id", request.pod_sandbox_id))
        if sandbox.state is not SandboxState.READY:
            raise Unavailable(f"read stats of pod sandbox {sandbox.id}: it is not ready")
        return api_pb2.PodSandboxStatsResponse(stats=(await self._of_sandboxes([sandbox]))[0])

    async def ListPodSandboxStats(
        self, request: api_pb2.ListPodSandboxStatsRequest
    ) -> api_pb2.ListPodSandboxStatsResponse:
        """List stats of the ready sandboxes that the filter selects."""
        return api_pb2.ListPodSandboxStatsResponse(
            stats=await self._of_sandboxes(self._select_sandboxes(request.filter))
        )

    async def StreamPodSandboxStats(
        self, request: api_pb2.StreamPodSandboxStatsRequest
    ) -> AsyncIterator[api_pb2.StreamPodSandboxStatsResponse]:
        """List sandboxes' stats in pages."""
        for page in pages(await self._of_sandboxes(self._select_sandboxes(request.filter))):
            yield api_pb2.StreamPodSandboxStatsResponse(pod_sandbox_stats=page)

    async def _of_containers(self, containers: list[Container]) -> list[api_pb2.ContainerStats]:
        found, mountpoint = await self._node.stats.containers(containers), self._mountpoint()
        return [container_stats(stats, mountpoint) for stats in found]

    async def _of_sandboxes(self, sandboxes: list[Sandbox]) -> list[api_pb2.PodSandboxStats]:
        found, mountpoint = await self._node.stats.sandboxes(sandboxes), self._mountpoint()
        return [sandbox_stats(stats, mountpoint) for stats in found]

    def _mountpoint(self) -> str:
        return layers_mountpoint(self._node.settings.root, self._node.images.usage()[0].mountpoint)

    def _select_containers(self, wanted: api_pb2.ContainerStatsFilter) -> list[Container]:
        found = by_id(self._node.containers(), wanted.id)
        if wanted.pod_sandbox_id:
            sandboxes = {sandbox.id for sandbox in by_id(self._node.sandboxes(), wanted.pod_sandbox_id)}
            found = [container for container in found if container.sandbox_id in sandboxes]
        return [container for container in found if has_labels(container.config.labels, wanted.label_selector)]

    def _select_sandboxes(self, wanted: api_pb2.PodSandboxStatsFilter) -> list[Sandbox]:
        return [
            sandbox
            for sandbox in by_id(self._node.sandboxes(), wanted.id)
            if sandbox.state is SandboxState.READY and has_labels(sandbox.config.labels, wanted.label_selector)
        ]
