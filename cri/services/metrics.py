"""ListMetricDescriptors, ListPodSandboxMetrics, StreamPodSandboxMetrics."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from cri.convert.metrics import metric_descriptors, sandbox_metrics
from cri.services.lists import pages
from cri.v1 import api_pb2
from pods.model import SandboxState

if TYPE_CHECKING:
    from cri.services.node import Node


class MetricsCalls:
    """The calls for pods' metrics, which kubelet passes on."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def ListMetricDescriptors(
        self, request: api_pb2.ListMetricDescriptorsRequest
    ) -> api_pb2.ListMetricDescriptorsResponse:
        """List the possible metrics; kubelet asks once, and drops metrics that are not in this list."""
        return api_pb2.ListMetricDescriptorsResponse(descriptors=metric_descriptors())

    async def ListPodSandboxMetrics(
        self, request: api_pb2.ListPodSandboxMetricsRequest
    ) -> api_pb2.ListPodSandboxMetricsResponse:
        """Return the metrics of all ready sandboxes and their running containers."""
        return api_pb2.ListPodSandboxMetricsResponse(pod_metrics=await self._read())

    async def StreamPodSandboxMetrics(
        self, request: api_pb2.StreamPodSandboxMetricsRequest
    ) -> AsyncIterator[api_pb2.StreamPodSandboxMetricsResponse]:
        """Return the same metrics in pages."""
        for page in pages(await self._read()):
            yield api_pb2.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=page)

    async def _read(self) -> list[api_pb2.PodSandboxMetrics]:
        ready = [sandbox for sandbox in self._node.sandboxes() if sandbox.state is SandboxState.READY]
        root = os.fspath(self._node.settings.root)
        return [sandbox_metrics(stats, root) for stats in await self._node.stats.sandboxes(ready, detailed=True)]
