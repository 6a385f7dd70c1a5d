"""CheckpointPod and RestorePod."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cri.convert import fields
from cri.convert.container import container_config
from cri.convert.sandbox import sandbox_config
from cri.deadline import with_deadline
from cri.v1 import api_pb2
from pods.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cri.services.node import Node


class CheckpointCalls:
    """The calls for checkpoints of whole pods."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @with_deadline
    async def CheckpointPod(
        self, request: api_pb2.CheckpointPodRequest, seconds: float
    ) -> api_pb2.CheckpointPodResponse:
        """Write the running containers of a pod, as of one instant, into a directory."""
        _refuse_options(request.options)
        sandbox_id = fields.required("pod_sandbox_id", request.pod_sandbox_id)
        output = Path(fields.absolute("output_path", request.output_path))
        if not request.container_ids:
            raise fields.missing("container_ids")
        found: set[str] = set()
        for index, container_id in enumerate(request.container_ids):
            fields.required(f"container_ids[{index}]", container_id)
            if container_id in found:
                raise InvalidArgument(f"container_ids[{index}]: {container_id!r} is repeated")
            found.add(container_id)
        await self._node.checkpoint_sandbox(sandbox_id, output, tuple(request.container_ids), seconds)
        return api_pb2.CheckpointPodResponse()

    @with_deadline
    async def RestorePod(self, request: api_pb2.RestorePodRequest, seconds: float) -> api_pb2.RestorePodResponse:
        """Create a pod and its containers, which resume from a checkpoint when they are started."""
        _refuse_options(request.options)
        directory = Path(fields.absolute("checkpoint_path", request.checkpoint_path))
        if not request.HasField("config"):
            raise fields.missing("config")
        if not request.container_configs:
            raise fields.missing("container_configs")
        config = sandbox_config("config", request.config)
        containers = [
            container_config(f"container_configs[{index}]", one) for index, one in enumerate(request.container_configs)
        ]
        if len({container.metadata.name for container in containers}) < len(containers):
            raise InvalidArgument("container_configs: two have the same name")
        sandbox_id, made = await self._node.restore_sandbox(
            directory, config, request.runtime_handler, containers, seconds
        )
        restored = [api_pb2.RestoredContainer(name=name, container_id=found) for name, found in made.items()]
        return api_pb2.RestorePodResponse(pod_sandbox_id=sandbox_id, restored_containers=restored)


def _refuse_options(options: Mapping[str, str]) -> None:
    for key in options:
        raise InvalidArgument(f"options: {key!r} is unknown: this call has no options")
