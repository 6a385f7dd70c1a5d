"""The calls on pod sandboxes: run, stop, remove, status, lists, updates of limits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from cri.convert import fields
from cri.convert.documents import info, sandbox_document
from cri.convert.resources import resources
from cri.convert.sandbox import sandbox_config, sandbox_item, sandbox_state, sandbox_status
from cri.services.lists import by_id, has_labels, pages
from cri.v1 import api_pb2
from pods.model import Sandbox

if TYPE_CHECKING:
    from cri.services.node import Node


class SandboxCalls:
    """The calls on pod sandboxes."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def RunPodSandbox(self, request: api_pb2.RunPodSandboxRequest) -> api_pb2.RunPodSandboxResponse:
        """Create and start a sandbox. Answers once it is ready and durable."""
        if not request.HasField("config"):
            raise fields.missing("config")
        config = sandbox_config("config", request.config)
        return api_pb2.RunPodSandboxResponse(
            pod_sandbox_id=await self._node.run_sandbox(config, request.runtime_handler)
        )

    async def StopPodSandbox(self, request: api_pb2.StopPodSandboxRequest) -> api_pb2.StopPodSandboxResponse:
        """Stop a sandbox's containers and release its network. Succeeds for an unknown id."""
        await self._node.stop_sandbox(fields.required("pod_sandbox_id", request.pod_sandbox_id))
        return api_pb2.StopPodSandboxResponse()

    async def RemovePodSandbox(self, request: api_pb2.RemovePodSandboxRequest) -> api_pb2.RemovePodSandboxResponse:
        """Remove a sandbox and its containers by force. Succeeds for an unknown id."""
        await self._node.remove_sandbox(fields.required("pod_sandbox_id", request.pod_sandbox_id))
        return api_pb2.RemovePodSandboxResponse()

    async def PodSandboxStatus(self, request: api_pb2.PodSandboxStatusRequest) -> api_pb2.PodSandboxStatusResponse:
        """Return a sandbox's status; NOT_FOUND for an unknown id."""
        sandbox = self._node.sandbox(fields.required("pod_sandbox_id", request.pod_sandbox_id))
        return api_pb2.PodSandboxStatusResponse(
            status=sandbox_status(sandbox),
            info=info(self._details(sandbox)) if request.verbose else None,
        )

    def _details(self, sandbox: Sandbox) -> dict[str, Any]:
        return self._node.sandbox_info(sandbox.id) | {"config": sandbox_document(sandbox.config)}

    async def UpdatePodSandboxResources(
        self, request: api_pb2.UpdatePodSandboxResourcesRequest
    ) -> api_pb2.UpdatePodSandboxResourcesResponse:
        """Record a pod's new overhead and resources. kubelet has already set them in the pod's cgroup."""
        sandbox_id = fields.required("pod_sandbox_id", request.pod_sandbox_id)
        overhead = resources("overhead", request.overhead) if request.HasField("overhead") else None
        total = resources("resources", request.resources) if request.HasField("resources") else None
        await self._node.update_sandbox(sandbox_id, overhead, total)
        return api_pb2.UpdatePodSandboxResourcesResponse()

    async def ListPodSandbox(self, request: api_pb2.ListPodSandboxRequest) -> api_pb2.ListPodSandboxResponse:
        """List the sandboxes that the filter selects."""
        return api_pb2.ListPodSandboxResponse(items=[sandbox_item(found) for found in self._select(request.filter)])

    async def StreamPodSandboxes(
        self, request: api_pb2.StreamPodSandboxesRequest
    ) -> AsyncIterator[api_pb2.StreamPodSandboxesResponse]:
        """List sandboxes in pages."""
        for page in pages(sandbox_item(found) for found in self._select(request.filter)):
            yield api_pb2.StreamPodSandboxesResponse(pod_sandboxes=page)

    def _select(self, wanted: api_pb2.PodSandboxFilter) -> Iterator[Sandbox]:
        state = sandbox_state("filter.state.state", wanted.state.state) if wanted.HasField("state") else None
        for sandbox in by_id(self._node.sandboxes(), wanted.id):
            if state in (None, sandbox.state) and has_labels(sandbox.config.labels, wanted.label_selector):
                yield sandbox
