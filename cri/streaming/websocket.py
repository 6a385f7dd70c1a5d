"""Streams over WebSocket: each message is of the stream that its first byte names.

Frames and masking are those of the `websockets` library, whose sans-I/O part unmasks in C: of messages of 32 KiB it was
measured to take 2.1 GB/s where wsproto takes 0.24.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Sequence
from typing import Final

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import OPEN, Protocol, Side

from cri.streaming.errors import ProtocolViolation
from cri.streaming.link import Link, Wire
from cri.streaming.page import Page

CLOSE_SIGNAL: Final = 255
_MAX_FRAME_BYTES: Final = 16 << 20  # clients send what they are given to write as one frame
MESSAGE_BYTES: Final = 64 << 10  # sent at once: the library copies, into memory that is best below malloc's threshold
_DATA: Final = (Opcode.BINARY, Opcode.TEXT, Opcode.CONT)

# The library reports each close, which the wire does already.
_log = logging.getLogger("crisp.streaming.websocket")
_log.setLevel(logging.ERROR)


class Frames:
    """WebSocket itself: messages out of bytes, and back."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._protocol = Protocol(Side.SERVER, max_size=(None, _MAX_FRAME_BYTES), logger=_log)

    def receive(self, data: memoryview) -> list[Frame]:
        """The data frames that are complete. Pings are answered. Raises ProtocolViolation when the client broke the
        protocol, closed, or was told to."""
        self._protocol.receive_data(data)  # type: ignore[arg-type]  # it appends to a bytearray
        events = self._protocol.events_received()
        self._flush()
        return [event for event in events if isinstance(event, Frame) and event.opcode in _DATA]

    def closed(self) -> bool:
        """Whether the client closed, or was closed for what it sent."""
        return self._protocol.state is not OPEN

    def reason(self) -> str:
        error = self._protocol.parser_exc
        return f"WebSocket: {error}" if error else "WebSocket: closed by the client"

    def send(self, data: bytes | memoryview, *, text: bool = False) -> None:
        """Send a message."""
        if self.closed():
            return
        if text:
            self._protocol.send_text(data)
        else:
            self._protocol.send_binary(data)
        self._flush()

    def pong(self) -> None:
        """A sign of life that asks for no answer (RFC 6455, section 5.5.3)."""
        if not self.closed():
            self._protocol.send_pong(b"")
            self._flush()

    def close(self, code: CloseCode = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        if not self.closed():
            self._protocol.send_close(code, reason)
            self._flush()

    def _flush(self) -> None:
        if output := [data for data in self._protocol.data_to_send() if data]:  # b"" would be the end of TCP's half
            self._wire.write(output)


class WebSocketLink(Link):
    """Channels of a WebSocket: `channel.k8s.io` and its versions.

    `text` is for the variants in base64, `closes` for those with a message that ends a channel (version 5), `streams`
    how many channels there are, `greeting` what is sent on some of them at once.
    """

    def __init__(
        self, wire: Wire, *, streams: int, text: bool, closes: bool, greeting: Sequence[tuple[int, bytes]]
    ) -> None:
        super().__init__(wire)
        self._frames = Frames(wire)
        self._streams = streams
        self._text = text
        self._closes = closes
        self._greeting = greeting
        self._stream = -1  # whose message is under way, -1 when none is
        self._rest = b""  # characters of base64 that are not four yet

    def begin(self) -> None:
        for stream, data in self._greeting:
            self.send(stream, data)

    def receive(self, data: memoryview) -> None:
        for frame in self._frames.receive(data):
            self._take(frame)
        if self._frames.closed():
            raise ProtocolViolation(self._frames.reason())

    def accept(self, stream: int) -> None:
        """All channels are there from the start."""

    def room(self, stream: int) -> int:
        return 0 if self.wire.full else MESSAGE_BYTES

    def send(self, stream: int, data: bytes) -> None:
        if self._text:
            self._frames.send(b"%d" % stream + base64.b64encode(data), text=True)
        else:
            self._frames.send(b"".join((stream.to_bytes(1, "big"), data)))

    def send_page(self, stream: int, page: Page, length: int) -> None:
        if self._text:
            self.send(stream, bytes(page.space(length)))
        else:
            self._frames.send(page.framed(stream.to_bytes(1, "big"), length))

    def end(self, stream: int) -> None:
        """No version has a message for this direction; the end of the connection is the end of all."""

    def reset(self, stream: int) -> None:
        """Nor for this."""

    def consumed(self, stream: int, length: int) -> None:
        """There are no windows."""

    def keep_alive(self) -> None:
        self._frames.pong()

    def goodbye(self) -> None:
        self._frames.close()

    def _take(self, frame: Frame) -> None:
        data = memoryview(frame.data)
        if frame.opcode is not Opcode.CONT:
            self._stream, self._rest = -1, b""
            if not data:
                return
            number = data[0]
            data = data[1:]
            if self._closes and number == CLOSE_SIGNAL:
                self._close_signal(data)
                return
            number -= ord("0") if self._text else 0
            if 0 <= number < self._streams:
                self._stream = number
        if self._stream < 0:
            return  # of a channel that is not there: newer clients may have more
        if self._text:
            data = self._decoded(data, last=frame.fin)
        if data:
            self.listener.received(self._stream, data)

    def _close_signal(self, channels: memoryview) -> None:
        if len(channels) != 1 or channels[0] >= self._streams:
            self._frames.close(CloseCode.PROTOCOL_ERROR, "the close signal names one channel")
            raise ProtocolViolation(f"WebSocket: close signal of {bytes(channels[:8])!r}")
        self.listener.ended(channels[0])

    def _decoded(self, data: memoryview, *, last: bool) -> memoryview:
        characters = self._rest + bytes(data)
        whole = len(characters) if last else len(characters) // 4 * 4
        self._rest = characters[whole:]
        try:
            return memoryview(base64.b64decode(characters[:whole], validate=True))
        except (binascii.Error, ValueError) as error:
            self._frames.close(CloseCode.INVALID_DATA, "the message is not in base64")
            raise ProtocolViolation(f"WebSocket: message not in base64: {error}") from error
