"""A link over WebSocket: the first byte of each message is the number of its stream.

The `websockets` library does framing and masking. Its sans-I/O part unmasks in C: for messages of 32 KiB it was
measured at 2.1 GB/s, wsproto at 0.24 GB/s.
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
_MAX_FRAME_BYTES: Final = 16 << 20  # clients send each write as one frame
MESSAGE_BYTES: Final = 64 << 10  # per message: the library copies it, best into memory below malloc's threshold
_DATA: Final = (Opcode.BINARY, Opcode.TEXT, Opcode.CONT)

# The library logs each close, which the connection logs already.
_log = logging.getLogger("crisp.streaming.websocket")
_log.setLevel(logging.ERROR)


class Frames:
    """Converts between bytes and WebSocket frames."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._protocol = Protocol(Side.SERVER, max_size=(None, _MAX_FRAME_BYTES), logger=_log)

    def receive(self, data: memoryview) -> list[Frame]:
        """Return the complete data frames; answer pings.

        After a violation, or a close by either side, `closed` is true.
        """
        self._protocol.receive_data(data)  # type: ignore[arg-type]  # it appends to a bytearray
        events = self._protocol.events_received()
        self._flush()
        return [event for event in events if isinstance(event, Frame) and event.opcode in _DATA]

    def closed(self) -> bool:
        """Return whether the client closed, or was closed for a violation."""
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
        """Send a sign of life that needs no answer (RFC 6455, section 5.5.3)."""
        if not self.closed():
            self._protocol.send_pong(b"")
            self._flush()

    def close(self, code: CloseCode = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        if not self.closed():
            self._protocol.send_close(code, reason)
            self._flush()

    def _flush(self) -> None:
        if output := [data for data in self._protocol.data_to_send() if data]:  # b"" would close the TCP direction
            self._wire.write(output)


class WebSocketLink(Link):
    """Channels of a WebSocket: `channel.k8s.io` and its versions.

    `text`: messages are in base64. `closes`: there is a message that ends a channel (version 5). `streams` is the
    number of channels. `greeting` is sent at once.
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
        self._stream = -1  # the stream of the unfinished message, -1 for none
        self._rest = b""  # base64 characters of an incomplete group of four

    def begin(self) -> None:
        for stream, data in self._greeting:
            self.send(stream, data)

    def receive(self, data: memoryview) -> None:
        for frame in self._frames.receive(data):
            self._take(frame)
        if self._frames.closed():
            raise ProtocolViolation(self._frames.reason())

    def accept(self, stream: int) -> None:
        """Do nothing: all channels exist from the start."""

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
        """Do nothing: the protocol cannot end one channel in this direction, only the whole connection."""

    def reset(self, stream: int) -> None:
        """Do nothing: the protocol has no resets."""

    def consumed(self, stream: int, length: int) -> None:
        """Do nothing: the protocol has no windows."""

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
            return  # an unknown channel: newer clients may have more
        if self._text:
            data = self._decoded(data, last=frame.fin)
        if data:
            self.listener.received(self._stream, data)

    def _close_signal(self, channels: memoryview) -> None:
        if len(channels) != 1 or channels[0] >= self._streams:
            self._frames.close(CloseCode.PROTOCOL_ERROR, "the close signal must name one channel")
            raise ProtocolViolation(f"WebSocket: close signal of {bytes(channels[:8])!r}")
        self.listener.ended(channels[0])

    def _decoded(self, data: memoryview, *, last: bool) -> memoryview:
        characters = self._rest + bytes(data)
        whole = len(characters) if last else len(characters) // 4 * 4
        self._rest = characters[whole:]
        try:
            return memoryview(base64.b64decode(characters[:whole], validate=True))
        except (binascii.Error, ValueError) as error:
            self._frames.close(CloseCode.INVALID_DATA, "the message is not base64")
            raise ProtocolViolation(f"WebSocket: message is not base64: {error}") from error
