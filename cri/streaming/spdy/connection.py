"""The streams of a connection, with their states and windows, and the effect of each frame on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cri.streaming.errors import ProtocolViolation
from cri.streaming.spdy import frames, windows
from cri.streaming.spdy.events import (
    Ended,
    Event,
    GoneAway,
    Opened,
    Pong,
    Received,
    Replied,
    Reset,
    WindowOpened,
)
from cri.streaming.spdy.frames import Control, Data, GoAwayStatus, ResetStatus, Setting, Type
from cri.streaming.spdy.headers import Compressor, Decompressor

Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on what a peer may demand."""

    streams: int = 256  # open at once
    control_bytes: int = 64 << 10
    header_bytes: int = 32 << 10
    headers: int = 64
    stream_window: int = 256 << 10
    connection_window: int = 1 << 20


class _Stream:
    __slots__ = ("ended_here", "ended_there", "receive", "replied", "send")

    def __init__(self, send: int, receive: int, *, replied: bool) -> None:
        self.send = windows.SendWindow(send)
        self.receive = windows.ReceiveWindow(receive)
        self.replied = replied
        self.ended_here = False
        self.ended_there = False


class Connection:
    """One end of a connection. Streams are numbered; odd ids are the client's.

    `receive` raises ProtocolViolation if the peer breaks the protocol. `take` then has the GOAWAY that tells it, after
    which the connection must be closed.
    """

    def __init__(self, *, client: bool, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._parity = 1 if client else 0
        self._next = 1 if client else 2
        self._last_from_peer = 0
        self._streams: dict[int, _Stream] = {}
        self._decoder = frames.Decoder(self._limits.control_bytes)
        self._compress = Compressor()
        self._decompress = Decompressor(self._limits.header_bytes, self._limits.headers)
        self._output: list[Buffer] = []
        self._initial_send = windows.DEFAULT
        self._send = windows.SendWindow(windows.DEFAULT)
        self._receive = windows.ReceiveWindow(self._limits.connection_window)
        self._peer_has_windows = False
        self._pings = 1 if client else 2
        self._going = False
        self._introduce()

    def _introduce(self) -> None:
        limits = self._limits
        values: dict[int, int] = {
            Setting.MAX_CONCURRENT_STREAMS: limits.streams,
            Setting.INITIAL_WINDOW_SIZE: limits.stream_window,
        }
        self._output.append(frames.settings(values))
        if (more := limits.connection_window - windows.DEFAULT) > 0:
            self._output.append(frames.pair(Type.WINDOW_UPDATE, 0, more))

    # -- what is said -------------------------------------------------------------------------------------------------

    def take(self) -> list[Buffer]:
        """Return the bytes to send, in order, and forget them."""
        output, self._output = self._output, []
        return output

    def open(self, headers: Mapping[str, str], *, fin: bool = False) -> int:
        """Open a stream and return its id; with `fin` nothing will be sent on it."""
        number = self._next
        self._next += 2
        self._streams[number] = stream = self._new_stream(replied=False)
        stream.ended_here = fin
        self._output.append(frames.syn_stream(number, self._compress.block(headers), fin=fin))
        return number

    def reply(self, number: int, headers: Mapping[str, str] | None = None) -> None:
        """Accept a stream that the peer opened."""
        stream = self._streams.get(number)
        if stream is not None and not stream.replied:
            stream.replied = True
            self._output.append(frames.syn_reply(number, self._compress.block(headers or {})))

    def room(self, number: int) -> int:
        """Return how many bytes may be sent on a stream. An ended stream has room, because its bytes are dropped."""
        stream = self._streams.get(number)
        if stream is None or stream.ended_here or not self._peer_has_windows:
            return frames.MAX_DATA
        return max(0, min(stream.send.left, self._send.left))

    def send(self, number: int, data: Buffer) -> None:
        """Send bytes, no more than `room`. Bytes for an ended stream are dropped."""
        if data and (header := self.send_header(number, len(data))):
            self._output += (header, data)

    def send_header(self, number: int, length: int) -> bytes:
        """Return the header for bytes that the caller sends itself, after what `take` returned; b"" to drop them."""
        stream = self._streams.get(number)
        if stream is None or stream.ended_here:
            return b""
        stream.send.left -= length
        self._send.left -= length
        return frames.data_header(number, length)

    def end(self, number: int) -> None:
        """End a stream: nothing more will be sent on it."""
        stream = self._streams.get(number)
        if stream is not None and not stream.ended_here:
            stream.ended_here = True
            self._output.append(frames.data_header(number, 0, fin=True))
            self._drop_if_over(number, stream)

    def reset(self, number: int, status: ResetStatus = ResetStatus.CANCEL) -> None:
        """Reset a stream, in both directions."""
        if self._streams.pop(number, None) is not None:
            self._output.append(frames.pair(Type.RST_STREAM, number, status))

    def consumed(self, number: int, length: int) -> None:
        """Report received bytes as processed: the peer may send as many more."""
        if more := self._receive.give_back(length):
            self._output.append(frames.pair(Type.WINDOW_UPDATE, 0, more))
        stream = self._streams.get(number)
        if stream is not None and not stream.ended_there and (more := stream.receive.give_back(length)):
            self._output.append(frames.pair(Type.WINDOW_UPDATE, number, more))

    def ping(self) -> int:
        """Send a ping and return its number; `Pong` will have it."""
        number = self._pings
        self._pings = self._pings + 2 if self._pings < windows.LARGEST else 2 - self._parity
        self._output.append(frames.ping(number))
        return number

    def go_away(self, status: GoAwayStatus = GoAwayStatus.OK) -> None:
        """Announce that new streams are refused."""
        if not self._going:
            self._going = True
            self._output.append(frames.pair(Type.GOAWAY, self._last_from_peer, status))

    def streams(self) -> tuple[int, ...]:
        """Return the ids of the open streams."""
        return tuple(self._streams)

    # -- what is heard ------------------------------------------------------------------------------------------------

    def receive(self, data: Buffer) -> list[Event]:
        """Process received bytes and return the events. Raises ProtocolViolation."""
        events: list[Event] = []
        try:
            for frame in self._decoder.feed(memoryview(data)):
                if isinstance(frame, Data):
                    self._data(frame, events)
                else:
                    self._control(frame, events)
        except ProtocolViolation:
            self.go_away(GoAwayStatus.PROTOCOL_ERROR)
            raise
        return events

    def _data(self, frame: Data, events: list[Event]) -> None:
        length = len(frame.data)
        if not self._receive.take(length) and self._peer_has_windows:
            raise ProtocolViolation("receive data: more than the connection's window")
        stream = self._streams.get(frame.stream)
        if stream is None or stream.ended_there:
            self._stray(frame, stream)
            return
        if not stream.receive.take(length) and self._peer_has_windows:
            self._fail(frame.stream, ResetStatus.FLOW_CONTROL_ERROR, events)
            self.consumed(frame.stream, length)
            return
        if length:
            events.append(Received(frame.stream, frame.data))
        if frame.fin:
            self._ended(frame.stream, stream, events)

    def _stray(self, frame: Data, stream: _Stream | None) -> None:
        """Handle data of an unknown or ended stream: an error, unless the data was sent before the stream ended."""
        self.consumed(frame.stream, len(frame.data))
        if stream is not None:
            self.reset(frame.stream, ResetStatus.STREAM_ALREADY_CLOSED)
        elif not self._was_open(frame.stream):
            raise ProtocolViolation(f"receive data: stream {frame.stream} was never opened")

    def _was_open(self, number: int) -> bool:
        mine = number % 2 == self._parity
        return number < self._next if mine else number <= self._last_from_peer

    def _control(self, frame: Control, events: list[Event]) -> None:
        match frame.type:
            case Type.SYN_STREAM:
                self._syn_stream(frame, events)
            case Type.SYN_REPLY | Type.HEADERS:
                self._with_headers(frame, events)
            case Type.RST_STREAM:
                number, status = frames.read_pair(frame.payload)
                if self._streams.pop(number, None) is not None:
                    events.append(Reset(number, status))
            case Type.SETTINGS:
                self._settings(frame, events)
            case Type.PING:
                self._ping(frames.read_ping(frame.payload), events)
            case Type.GOAWAY:
                events.append(GoneAway(*frames.read_pair(frame.payload)))
            case Type.WINDOW_UPDATE:
                self._window_update(*frames.read_pair(frame.payload), events)
            case _:
                pass  # section 2.2.1: unknown control frames are ignored

    def _syn_stream(self, frame: Control, events: list[Event]) -> None:
        number, block = frames.read_syn_stream(frame.payload)
        headers = self._decompress.headers(block)  # also for a refused stream: the compression state must advance
        if number % 2 == self._parity or number <= self._last_from_peer:
            raise ProtocolViolation(f"open stream: id {number} after {self._last_from_peer}")
        self._last_from_peer = number
        if self._going or len(self._streams) >= self._limits.streams:
            self._output.append(frames.pair(Type.RST_STREAM, number, ResetStatus.REFUSED_STREAM))
            return
        stream = self._streams[number] = self._new_stream(replied=False)
        stream.ended_here = bool(frame.flags & frames.UNIDIRECTIONAL)
        events.append(Opened(number, headers))
        if frame.flags & frames.FIN:
            self._ended(number, stream, events)

    def _with_headers(self, frame: Control, events: list[Event]) -> None:
        number, block = frames.read_with_headers(frame.payload)
        headers = self._decompress.headers(block)
        stream = self._streams.get(number)
        if stream is None:
            return
        if frame.type == Type.SYN_REPLY:
            if stream.replied or number % 2 != self._parity:
                self._fail(number, ResetStatus.STREAM_IN_USE, events)
                return
            stream.replied = True
        events.append(Replied(number, headers))
        if frame.flags & frames.FIN:
            self._ended(number, stream, events)

    def _ended(self, number: int, stream: _Stream, events: list[Event]) -> None:
        stream.ended_there = True
        events.append(Ended(number))
        self._drop_if_over(number, stream)

    def _settings(self, frame: Control, events: list[Event]) -> None:
        for key, value in frames.read_settings(frame.payload):
            if key != Setting.INITIAL_WINDOW_SIZE:
                continue
            if value > windows.LARGEST:
                raise ProtocolViolation(f"read SETTINGS: an initial window of {value} bytes")
            change, self._initial_send = value - self._initial_send, value
            for stream in self._streams.values():
                stream.send.grow(change)
            self._peer_has_windows = True
            events.append(WindowOpened(0))

    def _ping(self, number: int, events: list[Event]) -> None:
        if number % 2 == self._parity:
            events.append(Pong(number))
        else:
            self._output.append(frames.ping(number))

    def _window_update(self, number: int, more: int, events: list[Event]) -> None:
        self._peer_has_windows = True
        more &= windows.LARGEST
        if number == 0:
            if not self._send.grow(more):
                raise ProtocolViolation("receive WINDOW_UPDATE: the connection's window overflows")
        else:
            stream = self._streams.get(number)
            if stream is None:
                return
            if not stream.send.grow(more):
                self._fail(number, ResetStatus.FLOW_CONTROL_ERROR, events)
                return
        events.append(WindowOpened(number))

    def _fail(self, number: int, status: ResetStatus, events: list[Event]) -> None:
        """Reset a stream for the peer's error; its user gets the event of a reset."""
        self.reset(number, status)
        events.append(Reset(number, status))

    def _new_stream(self, *, replied: bool) -> _Stream:
        return _Stream(self._initial_send, self._limits.stream_window, replied=replied)

    def _drop_if_over(self, number: int, stream: _Stream) -> None:
        if stream.ended_here and stream.ended_there:
            self._streams.pop(number, None)
