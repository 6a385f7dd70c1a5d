"""What both transports are to those who use them: numbered streams of bytes to and from one client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cri.streaming.page import Page


class Wire(Protocol):
    """What a link needs of the client's connection that it goes over (`connection.ClientConnection`)."""

    page: Page
    full: bool  # the client takes no more for now
    fields: dict[str, object]  # of lines of the log: whose streams they are

    def write(self, data: Iterable[bytes | memoryview]) -> None:
        """Send bytes. What does not fit at once is kept: ask `full` before anything large."""

    def write_page(self, frame: memoryview) -> None:
        """Send from the page."""

    def hold(self, length: int) -> None:
        """So many bytes wait for a descriptor. With too many of them the client is not read until they are fewer."""

    def release(self, length: int) -> None:
        """So many of them wait no more."""

    def end(self) -> None:
        """Send what is waiting, and close."""


class Listener(Protocol):
    """Who uses a link. It is called on the loop, and not again after `lost`."""

    def opened(self, stream: int, headers: Mapping[str, str]) -> None:
        """The client opened a stream (SPDY only). It is to be accepted or reset."""

    def received(self, stream: int, data: memoryview) -> None:
        """Bytes from the client; the view is good for this call only."""

    def ended(self, stream: int) -> None:
        """The client has sent all that it will send on the stream."""

    def was_reset(self, stream: int) -> None:
        """The client gave the stream up, both ways."""

    def writable(self) -> None:
        """`room` may have grown."""

    def lost(self) -> None:
        """The client is gone."""


class Link(ABC):
    """Streams over a connection after its upgrade."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.listener: Listener

    @abstractmethod
    def begin(self) -> None:
        """Say what the protocol begins with, right behind the answer to the request."""

    @abstractmethod
    def receive(self, data: memoryview) -> None:
        """Take bytes from the wire. Raises ProtocolViolation, after which the connection is to be closed."""

    @abstractmethod
    def accept(self, stream: int) -> None:
        """Accept a stream that the client opened."""

    @abstractmethod
    def room(self, stream: int) -> int:
        """Bytes that may be sent at once now; 0 until `writable`."""

    @abstractmethod
    def send(self, stream: int, data: bytes) -> None:
        """Send some bytes."""

    @abstractmethod
    def send_page(self, stream: int, page: Page, length: int) -> None:
        """Send the bytes that were read into a page, no more than `room`."""

    @abstractmethod
    def end(self, stream: int) -> None:
        """Say that nothing more will be sent on a stream, where the protocol can say that."""

    @abstractmethod
    def reset(self, stream: int) -> None:
        """Give a stream up, both ways, where the protocol can."""

    @abstractmethod
    def consumed(self, stream: int, length: int) -> None:
        """So many received bytes have found their place."""

    @abstractmethod
    def keep_alive(self) -> None:
        """Let the client hear something while nothing is read from it."""

    @abstractmethod
    def goodbye(self) -> None:
        """Say that the connection ends in order."""
