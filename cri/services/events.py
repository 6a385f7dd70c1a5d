"""GetContainerEvents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from cri.convert.event import event_message
from cri.v1 import api_pb2
from pods.state.events import Listener

if TYPE_CHECKING:
    from pods.node import Node


class Events:
    """The call that tells what happens."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def GetContainerEvents(
        self, request: api_pb2.GetEventsRequest
    ) -> AsyncIterator[api_pb2.ContainerEventResponse]:
        """Every event from now on. RESOURCE_EXHAUSTED ends the stream of a client that reads too slowly."""
        # Not in the generator, which would not run before gRPC asks for the first event.
        return _messages(self._node.events.listen())


async def _messages(listener: Listener) -> AsyncIterator[api_pb2.ContainerEventResponse]:
    async for event in listener:
        yield event_message(event)
