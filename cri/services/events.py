"""GetContainerEvents: streams the events of pods and containers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from cri.convert.container_status import container_status
from cri.convert.sandbox import sandbox_status
from cri.v1 import api_pb2
from pods.state.events import Event, Listener

if TYPE_CHECKING:
    from cri.services.node import Node


class EventCalls:
    """The call that streams events."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def GetContainerEvents(
        self, request: api_pb2.GetEventsRequest
    ) -> AsyncIterator[api_pb2.ContainerEventResponse]:
        """Stream every event from now on. A client that reads too slowly gets RESOURCE_EXHAUSTED."""
        # Listen here: a generator's body would not run before gRPC asks for the first event.
        return _messages(self._node.events.listen())


async def _messages(listener: Listener[Event]) -> AsyncIterator[api_pb2.ContainerEventResponse]:
    async for event in listener:
        yield _message(event)


def _message(event: Event) -> api_pb2.ContainerEventResponse:
    """Return the event, with the answers of PodSandboxStatus and ContainerStatus as of its time."""
    return api_pb2.ContainerEventResponse(
        container_id=event.object_id,
        container_event_type=api_pb2.ContainerEventType.ValueType(event.kind),
        created_at=event.at,
        pod_sandbox_status=sandbox_status(event.sandbox),
        containers_statuses=[container_status(container) for container in event.containers],
    )
