"""The calls on containers: create, start, stop, remove, status, lists, log, updates of limits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from cri.convert import fields
from cri.convert.container import container_config
from cri.convert.container_status import container_item, container_states, container_status
from cri.convert.documents import container_document, info
from cri.convert.resources import resources
from cri.services.lists import by_id, has_labels, pages
from cri.v1 import api_pb2
from pods.model import Container, ContainerState

if TYPE_CHECKING:
    from cri.services.node import Node


class ContainerCalls:
    """The calls on containers, except those that run commands in them."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def CreateContainer(self, request: api_pb2.CreateContainerRequest) -> api_pb2.CreateContainerResponse:
        """Create a container in a sandbox. The request's copy of the sandbox's configuration is ignored."""
        sandbox_id = fields.required("pod_sandbox_id", request.pod_sandbox_id)
        if not request.HasField("config"):
            raise fields.missing("config")
        config = container_config("config", request.config)
        return api_pb2.CreateContainerResponse(container_id=await self._node.create_container(sandbox_id, config))

    async def StartContainer(self, request: api_pb2.StartContainerRequest) -> api_pb2.StartContainerResponse:
        """Start a created container. Answers once its program has been executed."""
        await self._node.start_container(fields.required("container_id", request.container_id))
        return api_pb2.StartContainerResponse()

    async def StopContainer(self, request: api_pb2.StopContainerRequest) -> api_pb2.StopContainerResponse:
        """Stop a container, by force after `timeout` seconds. Succeeds for an unknown id."""
        await self._node.stop_container(
            fields.required("container_id", request.container_id), fields.at_least("timeout", request.timeout, 0)
        )
        return api_pb2.StopContainerResponse()

    async def RemoveContainer(self, request: api_pb2.RemoveContainerRequest) -> api_pb2.RemoveContainerResponse:
        """Remove a container, by force if it runs. Succeeds for an unknown id."""
        await self._node.remove_container(fields.required("container_id", request.container_id))
        return api_pb2.RemoveContainerResponse()

    async def ContainerStatus(self, request: api_pb2.ContainerStatusRequest) -> api_pb2.ContainerStatusResponse:
        """Return a container's status; NOT_FOUND for an unknown id."""
        container = self._node.container(fields.required("container_id", request.container_id))
        return api_pb2.ContainerStatusResponse(
            status=container_status(container),
            info=info(self._details(container)) if request.verbose else None,
        )

    def _details(self, container: Container) -> dict[str, Any]:
        return self._node.container_info(container.id) | {"config": container_document(container.config)}

    async def ListContainers(self, request: api_pb2.ListContainersRequest) -> api_pb2.ListContainersResponse:
        """List the containers that the filter selects."""
        found = [container_item(container) for container in self._select(request.filter)]
        return api_pb2.ListContainersResponse(containers=found)

    async def UpdateContainerResources(
        self, request: api_pb2.UpdateContainerResourcesRequest
    ) -> api_pb2.UpdateContainerResourcesResponse:
        """Set the given limits; a limit that needs another one uses that one's present value.

        Annotations are only checked: they are for runtimes with options of their own, and crisp has none.
        """
        container_id = fields.required("container_id", request.container_id)
        fields.annotation_map("annotations", request.annotations)
        await self._node.update_container(container_id, resources("linux", request.linux))
        return api_pb2.UpdateContainerResourcesResponse()

    async def CheckpointContainer(
        self, request: api_pb2.CheckpointContainerRequest
    ) -> api_pb2.CheckpointContainerResponse:
        """Write a running container to an archive; it goes on running. Needs criu."""
        container_id = fields.required("container_id", request.container_id)
        location = fields.file("location", request.location)
        timeout = fields.at_least("timeout", request.timeout, 0)
        await self._node.checkpoint_container(container_id, location, timeout)
        return api_pb2.CheckpointContainerResponse()

    async def StreamContainers(
        self, request: api_pb2.StreamContainersRequest
    ) -> AsyncIterator[api_pb2.StreamContainersResponse]:
        """List containers in pages."""
        for page in pages(container_item(container) for container in self._select(request.filter)):
            yield api_pb2.StreamContainersResponse(containers=page)

    async def ReopenContainerLog(
        self, request: api_pb2.ReopenContainerLogRequest
    ) -> api_pb2.ReopenContainerLogResponse:
        """Continue logging in a new file at the log's path, after the old one was renamed."""
        await self._node.reopen_log(fields.required("container_id", request.container_id))
        return api_pb2.ReopenContainerLogResponse()

    def _select(self, wanted: api_pb2.ContainerFilter) -> Iterator[Container]:
        states = tuple(ContainerState)
        if wanted.HasField("state"):
            states = container_states("filter.state.state", wanted.state.state)
        sandboxes: set[str] | None = None
        if wanted.pod_sandbox_id:
            sandboxes = {sandbox.id for sandbox in by_id(self._node.sandboxes(), wanted.pod_sandbox_id)}
        for container in by_id(self._node.containers(), wanted.id):
            if (
                container.state in states
                and (sandboxes is None or container.sandbox_id in sandboxes)
                and has_labels(container.config.labels, wanted.label_selector)
            ):
                yield container
