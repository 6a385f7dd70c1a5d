"""Clients of the streaming server, as kubectl, crictl and the API server are: SPDY by the other side of crisp's own
codec, WebSocket by the `websockets` library. Blocking, one thread."""

from __future__ import annotations

import base64
import json
import os
import select
import socket
import ssl
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import urlsplit

from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side

from cri.streaming import spdy

SECONDS = 60.0
STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
TYPES = ("stdin", "stdout", "stderr", "error", "resize")
NO_WINDOWS = spdy.Limits(stream_window=(1 << 31) - 1, connection_window=(1 << 31) - 1)
WEBSOCKET_KEY = "dGhlIHNhbXBsZSBub25jZQ=="


class Refused(Exception):
    """The server did not upgrade: its status and answer."""

    def __init__(self, status: int, answer: bytes) -> None:
        super().__init__(f"{status}: {answer!r}")
        self.status = status


class StreamClient(ABC):
    """What came is in `data` by stream; streams that the server ended are in `ended`, those it reset in `resets`."""

    def __init__(self, url: str, headers: list[tuple[str, str]], method: str, context: ssl.SSLContext | None) -> None:
        self.data: dict[int, bytearray] = defaultdict(bytearray)
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.closed = False
        self.protocol = ""
        self.taken: Callable[[int, memoryview], None] = lambda stream, data: self.data[stream].extend(data)
        self._output: list[memoryview] = []
        self._feeds: dict[int, Iterator[bytes]] = {}
        place = urlsplit(url)
        assert place.hostname
        self.socket: socket.socket = socket.create_connection((place.hostname, place.port), SECONDS)
        try:
            if place.scheme == "https":
                self.socket = (context or ssl._create_unverified_context()).wrap_socket(
                    self.socket, server_hostname=place.hostname
                )
            target = f"{place.path}?{place.query}" if place.query else place.path
            rest = self._upgrade(f"{method} {target} HTTP/1.1", [("Host", place.netloc), *headers])
        except BaseException:
            self.socket.close()
            raise
        self.socket.setblocking(False)
        self._take(rest)

    def _upgrade(self, request: str, headers: list[tuple[str, str]]) -> bytes:
        lines = [request, *(f"{name}: {value}" for name, value in headers), "", ""]
        self.socket.sendall("\r\n".join(lines).encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            if not (data := self.socket.recv(65536)):
                break
            answer += data
        head, _, rest = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "):
            raise Refused(int(head.split()[1]) if head else 0, rest)
        for line in head.decode().split("\r\n")[1:]:
            name, _, value = line.partition(": ")
            if name.lower() in ("x-stream-protocol-version", "sec-websocket-protocol"):
                self.protocol = value
        return rest

    # -- what each protocol does --------------------------------------------------------------------------------------

    @abstractmethod
    def send(self, stream: int, data: bytes) -> None: ...

    @abstractmethod
    def end(self, stream: int) -> None: ...

    @abstractmethod
    def _take(self, data: bytes) -> None: ...

    # -- all of them --------------------------------------------------------------------------------------------------

    def write(self, *data: bytes | memoryview) -> None:
        """Put raw bytes on the wire."""
        self._output += [memoryview(piece) for piece in data if piece]

    def feed(self, stream: int, pieces: Iterator[bytes]) -> None:
        """Send these as fast as the server takes them, and then end the stream."""
        self._feeds[stream] = pieces

    def until(self, condition: Callable[[], bool], seconds: float = SECONDS) -> Self:
        """Send and receive until the condition holds. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not condition():
            self.step(deadline - time.monotonic())
            if time.monotonic() > deadline:
                state = f"ended {self.ended}, reset {self.resets}, closed {self.closed}"
                raise TimeoutError(f"{state}: {dict(self.data)}")
        return self

    def until_closed(self, seconds: float = SECONDS) -> Self:
        """Send and receive until the server closes."""
        return self.until(lambda: self.closed, seconds)

    def step(self, seconds: float) -> None:
        """Wait for the socket once, and do what it lets one do."""
        if self.closed:
            return
        if not self._output:
            for stream, pieces in tuple(self._feeds.items()):
                if (piece := next(pieces, None)) is None:
                    del self._feeds[stream]
                    self.end(stream)
                else:
                    self.send(stream, piece)
        pending = isinstance(self.socket, ssl.SSLSocket) and self.socket.pending()
        poll = select.poll()
        poll.register(self.socket, select.POLLIN | (select.POLLOUT if self._output else 0))
        ready = poll.poll(0 if pending else max(0.0, seconds) * 1000)
        events = ready[0][1] if ready else 0
        try:
            if events & select.POLLOUT:
                self._write_some()
            if pending or events & ~select.POLLOUT:
                data = self.socket.recv(256 << 10)
                self.closed = not data
                self._take(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except (ConnectionError, ssl.SSLError):
            self.closed = True

    def _write_some(self) -> None:
        if isinstance(self.socket, ssl.SSLSocket):
            sent = self.socket.send(self._output[0])
        else:
            sent = self.socket.sendmsg(self._output[:64])
        while sent:
            piece = self._output[0]
            if sent < len(piece):
                self._output[0] = piece[sent:]
                return
            sent -= len(piece)
            del self._output[0]

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SpdyClient(StreamClient):
    """A client with the habits of moby/spdystream: POST, and no windows, unless it is given some."""

    def __init__(
        self,
        url: str,
        *protocols: str,
        method: str = "POST",
        context: ssl.SSLContext | None = None,
        windows: spdy.Limits | None = None,
    ) -> None:
        self.spdy = spdy.Connection(client=True, limits=windows or NO_WINDOWS)
        self._has_windows = windows is not None
        self._tell_windows()
        self.replied: set[int] = set()
        self.pongs: list[int] = []
        self.gone_away: int | None = None
        headers = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("Content-Length", "0")]
        headers += [("X-Stream-Protocol-Version", protocol) for protocol in protocols]
        super().__init__(url, headers, method, context)
        self.flush()

    def open(self, **headers: str) -> int:
        """Open a stream, and wait for the reply, or the reset."""
        stream = self.spdy.open(headers)
        self.flush()
        self.until(lambda: stream in self.replied or stream in self.resets or self.closed)
        return stream

    def send(self, stream: int, data: bytes) -> None:
        self.spdy.send(stream, data)
        self.flush()

    def end(self, stream: int) -> None:
        self.spdy.end(stream)
        self.flush()

    def flush(self) -> None:
        self.write(*self.spdy.take())

    def _take(self, data: bytes) -> None:
        for event in self.spdy.receive(data):
            match event:
                case spdy.Received(stream, view):
                    self.taken(stream, view)
                    self.spdy.consumed(stream, len(view))
                case spdy.Replied(stream, _):
                    self.replied.add(stream)
                case spdy.Ended(stream):
                    self.ended.add(stream)
                case spdy.Reset(stream, status):
                    self.resets[stream] = status
                case spdy.Pong(number):
                    self.pongs.append(number)
                case spdy.GoneAway(_, status):
                    self.gone_away = status
        self._tell_windows()
        self.flush()

    def _tell_windows(self) -> None:
        if not self._has_windows:
            self.spdy.take()


class WebSocketClient(StreamClient):
    """Messages of numbered channels."""

    def __init__(self, url: str, *protocols: str, context: ssl.SSLContext | None = None) -> None:
        self.frames = Protocol(Side.CLIENT, max_size=None)
        self.text = any("base64" in protocol for protocol in protocols)
        headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", WEBSOCKET_KEY),
        ]
        if protocols:
            headers.append(("Sec-WebSocket-Protocol", ", ".join(protocols)))
        super().__init__(url, headers, "GET", context)

    def send(self, stream: int, data: bytes) -> None:
        if self.text:
            self.frames.send_text(b"%d" % stream + base64.b64encode(data))
        else:
            self.frames.send_binary(bytes([stream]) + data)
        self.flush()

    def end(self, stream: int) -> None:
        self.frames.send_binary(bytes([255, stream]))
        self.flush()

    def flush(self) -> None:
        self.write(*self.frames.data_to_send())

    def _take(self, data: bytes) -> None:
        if data:
            self.frames.receive_data(data)
        for frame in self.frames.events_received():
            if isinstance(frame, Frame) and frame.opcode in (Opcode.BINARY, Opcode.TEXT):
                self._message(memoryview(frame.data))
        self.flush()

    def _message(self, message: memoryview) -> None:
        stream = message[0] - (ord("0") if self.text else 0)
        self.taken(stream, memoryview(base64.b64decode(message[1:])) if self.text else message[1:])

    @property
    def close_code(self) -> int | None:
        return self.frames.close_rcvd.code if self.frames.close_rcvd else None


class TunnelClient(SpdyClient):
    """SPDY in the messages of a WebSocket."""

    def __init__(self, url: str, protocol: str) -> None:
        self._inner: WebSocketClient | None = None
        self.spdy = spdy.Connection(client=True, limits=NO_WINDOWS)
        self._has_windows = False
        self.spdy.take()
        self.replied, self.pongs, self.gone_away = set(), [], None
        self._carrier = Protocol(Side.CLIENT, max_size=None)
        headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", WEBSOCKET_KEY),
            ("Sec-WebSocket-Protocol", protocol),
        ]
        StreamClient.__init__(self, url, headers, "GET", None)

    def flush(self) -> None:
        if output := b"".join(self.spdy.take()):
            self._carrier.send_binary(output)
            self.write(*self._carrier.data_to_send())

    def _take(self, data: bytes) -> None:
        if data:
            self._carrier.receive_data(data)
        for frame in self._carrier.events_received():
            if isinstance(frame, Frame) and frame.opcode is Opcode.BINARY:
                super()._take(bytes(frame.data))


class Command:
    """A client of exec or attach over either transport, whose streams are known by STDIN to RESIZE."""

    def __init__(self, client: StreamClient, streams: dict[int, int]) -> None:
        self.client = client
        self._streams = streams

    @classmethod
    def over(
        cls, transport: str, url: str, protocol: str, *channels: int, context: ssl.SSLContext | None = None
    ) -> Self:
        """Connect over "spdy" or "websocket", opening the channels and the one for the error."""
        if transport == "websocket":
            client: StreamClient = WebSocketClient(url, protocol, context=context)
            return cls(client, {channel: channel for channel in range(5)})
        spdy_client = SpdyClient(url, protocol, context=context)
        return cls(spdy_client, {c: spdy_client.open(streamtype=TYPES[c]) for c in (ERROR, *channels)})

    def stream(self, channel: int) -> int:
        """What the client knows the channel by."""
        return self._streams[channel]

    def send(self, data: bytes, channel: int = STDIN) -> None:
        self.client.send(self._streams[channel], data)

    def end(self, channel: int = STDIN) -> None:
        self.client.end(self._streams[channel])

    def feed(self, pieces: Iterator[bytes]) -> None:
        self.client.feed(self._streams[STDIN], pieces)

    def resize(self, width: int, height: int) -> None:
        self.send(json.dumps({"Width": width, "Height": height}).encode(), RESIZE)

    def output(self, channel: int = STDOUT) -> bytes:
        return bytes(self.client.data[self._streams.get(channel, -1)])

    def until(self, text: bytes, channel: int = STDOUT) -> None:
        """Wait for some output."""
        self.client.until(lambda: text in self.output(channel))

    def finish(self, seconds: float = SECONDS) -> bytes:
        """Wait for the server to close; what came on the error's stream."""
        self.client.until_closed(seconds)
        self.client.close()
        return self.output(ERROR)

    def exit_code(self, seconds: float = SECONDS) -> int:
        """Wait for the server to close; the exit code by its status (version 4 and 5)."""
        return exit_code(json.loads(self.finish(seconds)))

    def close(self) -> None:
        self.client.close()


def exit_code(status: dict[str, Any]) -> int:
    """The exit code that a metav1.Status tells of."""
    if status["status"] == "Success":
        return 0
    assert status["reason"] == "NonZeroExitCode", status
    (cause,) = status["details"]["causes"]
    assert cause["reason"] == "ExitCode"
    return int(cause["message"])


def random_pieces(total: int, size: int) -> Iterator[bytes]:
    """`total` bytes in pieces of `size`: the same random block again and again, each time with another beginning."""
    block = os.urandom(size - 8)
    for number in range(total // size):
        yield number.to_bytes(8, "big") + block


@contextmanager
def closing(*clients: StreamClient | Command) -> Iterator[None]:
    try:
        yield
    finally:
        for client in clients:
            client.close()
