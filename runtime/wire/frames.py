"""Frames messages between crispd and a shim: length-prefixed JSON, with descriptors alongside (unix(7), SCM_RIGHTS).

`Decoder` and `encode` do no I/O. A frame is a 4-byte big-endian length and that many bytes of UTF-8 JSON, an object.
Its member "fds" is the number of its descriptors; descriptors arrive in the order of the frames.
"""

from __future__ import annotations

import array
import os
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

from runtime.light import json, socket

Message = dict[str, Any]

MAX_FRAME: Final = 64 << 20
_HEADER: Final = struct.Struct(">I")
_MAX_FDS: Final = 16
_RECEIVE: Final = 64 << 10


class ProtocolError(Exception):
    """The peer violated the framing: a frame too large, not JSON, not an object, or with too few descriptors."""


def encode(message: Message) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode()
    return _HEADER.pack(len(body)) + body


class Decoder:
    """Turns received bytes and descriptors into messages. Owns descriptors until a message takes them."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fds: deque[int] = deque()

    def __bool__(self) -> bool:
        """Whether it has something of which no message has come yet."""
        return bool(self._buffer or self._fds)

    def feed(self, data: bytes, fds: Sequence[int]) -> None:
        self._buffer += data
        self._fds.extend(fds)

    def messages(self) -> Iterator[tuple[Message, list[int]]]:
        """Yield the complete messages received so far, each with its descriptors."""
        while len(self._buffer) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise ProtocolError(f"frame of {length} bytes, more than {MAX_FRAME}")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            try:
                message = json.loads(body)
            except (ValueError, RecursionError) as error:
                raise ProtocolError(f"frame is not JSON: {error}") from error
            if not isinstance(message, dict):
                raise ProtocolError("frame is not a JSON object")
            count = message.get("fds", 0)
            if not isinstance(count, int) or not 0 <= count <= len(self._fds):
                raise ProtocolError(f"frame announces {count} descriptors, got {len(self._fds)}")
            yield message, [self._fds.popleft() for _ in range(count)]

    def close(self) -> None:
        """Close the descriptors that no message has taken."""
        while self._fds:
            os.close(self._fds.popleft())


def receive(sock: socket.socket, decoder: Decoder) -> bool:
    """Read once and feed the decoder. Returns False at end of file. Raises BlockingIOError if there is nothing."""
    data, ancillary, _flags, _address = sock.recvmsg(_RECEIVE, socket.CMSG_LEN(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    decoder.feed(data, fds.tolist())
    return bool(data)


class Outbox:
    """Queues bytes for a non-blocking socket. Sends each frame's descriptors with its first byte."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._queue: deque[tuple[memoryview, Sequence[int]]] = deque()

    def __bool__(self) -> bool:
        return bool(self._queue)

    def put(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Queue a message. The descriptors are duplicated, so the caller may close its own."""
        if fds:
            message = {**message, "fds": len(fds)}
        self._queue.append((memoryview(encode(message)), [os.dup(fd) for fd in fds]))

    def flush(self) -> None:
        """Send as much as the socket takes now. Raises OSError if the peer is gone."""
        while self._queue:
            data, fds = self._queue[0]
            try:
                sent = socket.send_fds(self._sock, [data], fds) if fds else self._sock.send(data)
            except BlockingIOError:
                return
            for fd in fds:
                os.close(fd)
            if sent < len(data):
                self._queue[0] = (data[sent:], ())
            else:
                self._queue.popleft()

    def close(self) -> None:
        """Drop everything that was not sent."""
        for _data, fds in self._queue:
            for fd in fds:
                os.close(fd)
        self._queue.clear()
