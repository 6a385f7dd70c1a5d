"""A link over SPDY/3.1, either directly on the connection or inside WebSocket messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from websockets.frames import CloseCode

from cri.streaming import spdy
from cri.streaming.errors import ProtocolViolation
from cri.streaming.link import Link, Wire
from cri.streaming.page import Page
from cri.streaming.websocket import MESSAGE_BYTES, Frames

_SERVER: Final = False


class SpdyLink(Link):
    """A SPDY connection; stream numbers are SPDY's ids."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire)
        self._spdy = spdy.Connection(client=_SERVER)

    def begin(self) -> None:
        self._flush()

    def receive(self, data: memoryview) -> None:
        try:
            events = self._spdy.receive(data)
        except ProtocolViolation:
            self._flush()
            raise
        for event in events:
            match event:
                case spdy.Received(stream, view):
                    self.listener.received(stream, view)
                case spdy.Opened(stream, headers):
                    self.listener.opened(stream, headers)
                case spdy.Ended(stream):
                    self.listener.ended(stream)
                case spdy.Reset(stream, _):
                    self.listener.was_reset(stream)
                case spdy.WindowOpened(_):
                    self.listener.writable()
        self._flush()

    def accept(self, stream: int) -> None:
        self._spdy.reply(stream)
        self._flush()

    def room(self, stream: int) -> int:
        return 0 if self.wire.full else self._spdy.room(stream)

    def send(self, stream: int, data: bytes) -> None:
        self._spdy.send(stream, data)
        self._flush()

    def send_page(self, stream: int, page: Page, length: int) -> None:
        self._flush()
        if header := self._spdy.send_header(stream, length):
            self._write_page(page.framed(header, length))

    def end(self, stream: int) -> None:
        self._spdy.end(stream)
        self._flush()

    def reset(self, stream: int) -> None:
        self._spdy.reset(stream)
        self._flush()

    def consumed(self, stream: int, length: int) -> None:
        self._spdy.consumed(stream, length)
        self._flush()

    def keep_alive(self) -> None:
        self._spdy.ping()
        self._flush()

    def goodbye(self) -> None:
        self._spdy.go_away()
        self._flush()

    def _flush(self) -> None:
        if output := self._spdy.take():
            self._write(output)

    def _write_page(self, frame: memoryview) -> None:
        self.wire.write_page(frame)

    def _write(self, output: Iterable[bytes | memoryview]) -> None:
        self.wire.write(output)


class TunnelledSpdyLink(SpdyLink):
    """SPDY inside a WebSocket's binary messages, split anywhere: the protocol `SPDY/3.1+portforward.k8s.io`."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire)
        self._frames = Frames(wire)

    def receive(self, data: memoryview) -> None:
        try:
            for frame in self._frames.receive(data):
                super().receive(memoryview(frame.data))
        except ProtocolViolation:
            self._frames.close(CloseCode.PROTOCOL_ERROR)
            raise
        if self._frames.closed():
            raise ProtocolViolation(self._frames.reason())

    def room(self, stream: int) -> int:
        return min(super().room(stream), MESSAGE_BYTES)

    def keep_alive(self) -> None:
        super().keep_alive()
        self._frames.pong()

    def goodbye(self) -> None:
        super().goodbye()
        self._frames.close(CloseCode.NORMAL_CLOSURE)

    def _write_page(self, frame: memoryview) -> None:
        self._frames.send(frame)

    def _write(self, output: Iterable[bytes | memoryview]) -> None:
        self._frames.send(b"".join(output))
