"""The framing of an NRI connection, without I/O: channels in a multiplexer, and ttrpc messages in each channel.

All numbers are big-endian. A frame of the multiplexer is channel (4 bytes), length (4), payload; channel 0 is reserved.
The payloads of a channel form one stream of bytes: a ttrpc message may span frames, or share one with others. A ttrpc
message is length (4), stream (4), type (1), flags (1), and a payload of at most 4 MiB.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from cri.nri.errors import WireError

MESSAGE_LIMIT = 4 << 20
_MESSAGE = struct.Struct(">IIBB")
_FRAME = struct.Struct(">II")
# Plugins in Go read the start of a message into a buffer of this size, and fail on a longer frame; they read the rest
# to its final place. More and shorter frames may overflow their queue of 256.
_FIRST_FRAME = 4096
FRAME_LIMIT = _MESSAGE.size + MESSAGE_LIMIT


class Kind(IntEnum):
    """The type of a ttrpc message."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


@dataclass(frozen=True, slots=True)
class Message:
    stream: int
    kind: Kind
    payload: bytes
    flags: int = 0


def encode_message(message: Message) -> bytes:
    """Encode a message. Raises WireError if its payload exceeds the limit."""
    size = len(message.payload)
    if size > MESSAGE_LIMIT:
        raise WireError(f"send ttrpc message: {size} bytes are over the limit of {MESSAGE_LIMIT}")
    return _MESSAGE.pack(size, message.stream, message.kind, message.flags) + message.payload


def encode_frames(channel: int, data: bytes) -> bytes:
    """Split a message into frames of a channel: a short one, and one with the rest."""
    parts = filter(None, (data[:_FIRST_FRAME], data[_FIRST_FRAME:]))
    return b"".join(_FRAME.pack(channel, len(part)) + part for part in parts)


class FrameReader:
    """Splits a connection's bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Add received bytes; yield (channel, payload) of each complete frame. Raises WireError."""
        self._buffer += data
        while len(self._buffer) >= _FRAME.size:
            channel, size = _FRAME.unpack_from(self._buffer)
            if channel == 0:
                raise WireError("read frame: channel 0 is reserved")
            if size > FRAME_LIMIT:
                raise WireError(f"read frame: length {size} is over the limit of {FRAME_LIMIT}")
            end = _FRAME.size + size
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_FRAME.size : end])
            del self._buffer[:end]
            yield channel, payload


class MessageReader:
    """Splits a channel's bytes into ttrpc messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Add a channel's bytes; yield each complete message. Raises WireError."""
        self._buffer += data
        while len(self._buffer) >= _MESSAGE.size:
            size, stream, kind, flags = _MESSAGE.unpack_from(self._buffer)
            if size > MESSAGE_LIMIT:
                raise WireError(f"read ttrpc message: length {size} is over the limit of {MESSAGE_LIMIT}")
            if kind not in Kind.__members__.values():
                raise WireError(f"read ttrpc message: type {kind} is unknown")
            end = _MESSAGE.size + size
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_MESSAGE.size : end])
            del self._buffer[:end]
            yield Message(stream, Kind(kind), payload, flags)
