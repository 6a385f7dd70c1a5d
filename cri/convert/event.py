"""Events for GetContainerEvents."""

from __future__ import annotations

from cri.convert.container_status import container_status
from cri.convert.sandbox import sandbox_status
from cri.v1 import api_pb2
from pods.state.events import Event


def event_message(event: Event) -> api_pb2.ContainerEventResponse:
    """The event, with what PodSandboxStatus and ContainerStatus would have answered at its time."""
    return api_pb2.ContainerEventResponse(
        container_id=event.object_id,
        container_event_type=api_pb2.ContainerEventType.ValueType(event.kind),
        created_at=event.at,
        pod_sandbox_status=sandbox_status(event.sandbox),
        containers_statuses=[container_status(container) for container in event.containers],
    )
