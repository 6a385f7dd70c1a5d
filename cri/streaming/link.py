"""The common interface of both transports: numbered streams of bytes to and from one client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cri.streaming.page import Page


class Wire(Protocol):
    """What a link needs of the client's connection (`connection.ClientConnection`)."""

    page: Page
    full: bool  # the client accepts no more for now
    fields: dict[str, object]  # for log lines: whose streams they are

    def write(self, data: Iterable[bytes | memoryview]) -> None:
        """Send bytes. What does not fit is buffered: check `full` before sending much."""

    def write_page(self, frame: memoryview) -> None:
        """Send a part of the page."""

    def hold(self, length: int) -> None:
        """Count bytes that wait for a descriptor. While there are too many the client is not read."""

    def release(self, length: int) -> None:
        """Uncount bytes that no longer wait."""

    def end(self) -> None:
        """Send the buffered bytes, and close."""


class Listener(Protocol):
    """The user of a link. It is called on the event loop, and never after `lost`."""

    def opened(self, stream: int, headers: Mapping[str, str]) -> None:
        """The client opened a stream (SPDY only). It must be accepted or reset."""

    def received(self, stream: int, data: memoryview) -> None:
        """Bytes came from the client; the view is valid during this call only."""

    def ended(self, stream: int) -> None:
        """The client will send nothing more on the stream."""

    def was_reset(self, stream: int) -> None:
        """The client reset the stream, in both directions."""

    def writable(self) -> None:
        """`room` may have grown."""

    def lost(self) -> None:
        """The client has gone."""

    def stop(self, reason: str) -> None:
        """End the session, and tell the client why."""


class Link(ABC):
    """Streams over a connection after its upgrade."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.listener: Listener

    @abstractmethod
    def begin(self) -> None:
        """Send the protocol's first messages, right after the response to the request."""

    @abstractmethod
    def receive(self, data: memoryview) -> None:
        """Process received bytes. Raises ProtocolViolation, after which the connection must be closed."""

    @abstractmethod
    def accept(self, stream: int) -> None:
        """Accept a stream that the client opened."""

    @abstractmethod
    def room(self, stream: int) -> int:
        """Return how many bytes may be sent now; after 0 wait for `writable`."""

    @abstractmethod
    def send(self, stream: int, data: bytes) -> None:
        """Send bytes."""

    @abstractmethod
    def send_page(self, stream: int, page: Page, length: int) -> None:
        """Send bytes that were read into a page, no more than `room`."""

    @abstractmethod
    def end(self, stream: int) -> None:
        """Report that nothing more will be sent on a stream, if the protocol has a message for that."""

    @abstractmethod
    def reset(self, stream: int) -> None:
        """Reset a stream in both directions, if the protocol can."""

    @abstractmethod
    def consumed(self, stream: int, length: int) -> None:
        """Report that received bytes have been processed."""

    @abstractmethod
    def keep_alive(self) -> None:
        """Send a sign of life while nothing is read from the client."""

    @abstractmethod
    def goodbye(self) -> None:
        """Send the protocol's orderly end of the connection."""
