"""Frames: a header of 8 bytes and a payload of at most 2^24-1 bytes (specification, section 2.2).

The bytes of a data frame are passed on as they arrive. A control frame is collected first, so its length is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from cri.streaming.errors import ProtocolViolation

VERSION: Final = 3
MAX_DATA: Final = (1 << 24) - 1
FIN: Final = 0x01
UNIDIRECTIONAL: Final = 0x02
_CONTROL: Final = 0x80000000
_ID: Final = 0x7FFFFFFF
HEADER = struct.Struct("!II")
_U32 = struct.Struct("!I")
_PAIR = struct.Struct("!II")
_SYN_STREAM = struct.Struct("!IIBB")


class Type(IntEnum):
    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class ResetStatus(IntEnum):
    """Why a stream is reset (section 2.6.3)."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    UNSUPPORTED_VERSION = 4
    CANCEL = 5
    INTERNAL_ERROR = 6
    FLOW_CONTROL_ERROR = 7
    STREAM_IN_USE = 8
    STREAM_ALREADY_CLOSED = 9
    FRAME_TOO_LARGE = 11


class GoAwayStatus(IntEnum):
    """Why a connection ends (section 2.6.6)."""

    OK = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


class Setting(IntEnum):
    """The settings used here (section 2.6.4)."""

    MAX_CONCURRENT_STREAMS = 4
    INITIAL_WINDOW_SIZE = 7


@dataclass(slots=True)
class Control:
    """A control frame; `payload` is a view, valid until the next bytes are fed."""

    type: int
    flags: int
    payload: memoryview


@dataclass(slots=True)
class Data:
    """A part of a data frame; `fin` is set on the last part."""

    stream: int
    data: memoryview
    fin: bool


class Decoder:
    """Splits bytes into frames."""

    def __init__(self, max_control: int) -> None:
        self._max_control = max_control
        self._held = bytearray()  # an incomplete header or control frame
        self._stream = 0  # of the unfinished data frame
        self._fin = False  # whether that frame ends the stream
        self._left = 0  # bytes of it that are still to come

    def feed(self, view: memoryview) -> Iterator[Control | Data]:
        """Yield the frames that are complete with `view`. Raises ProtocolViolation."""
        while view:
            if self._left:
                piece, view = view[: self._left], view[self._left :]
                self._left -= len(piece)
                yield Data(self._stream, piece, self._fin and not self._left)
                continue
            frame, view = self._whole(view)
            if frame is None:
                return
            first, second = HEADER.unpack_from(frame)
            if first & _CONTROL:
                yield Control(first & 0xFFFF, second >> 24, frame[HEADER.size :])
            else:
                yield from self._data(first, second)

    def _whole(self, view: memoryview) -> tuple[memoryview | None, memoryview]:
        """Return the next frame (only the header of a data frame) and the remaining bytes; None if it is incomplete."""
        if not self._held and len(view) >= HEADER.size and len(view) >= (size := self._size(view)):
            return view[:size], view[size:]
        view = self._hold(view, HEADER.size)
        if len(self._held) < HEADER.size:
            return None, view
        size = self._size(self._held)
        view = self._hold(view, size)
        if len(self._held) < size:
            return None, view
        frame, self._held = memoryview(self._held), bytearray()
        return frame, view

    def _hold(self, view: memoryview, size: int) -> memoryview:
        """Keep the missing bytes up to `size`; return the rest of `view`."""
        missing = max(0, size - len(self._held))
        self._held += view[:missing]
        return view[missing:]

    def _size(self, header: memoryview | bytearray) -> int:
        """Return how many bytes of a frame to collect: all of a control frame, only the header of a data frame."""
        first: int
        second: int
        first, second = HEADER.unpack_from(header)
        if not first & _CONTROL:
            return HEADER.size
        if (first >> 16) & 0x7FFF != VERSION:
            raise ProtocolViolation(f"read frame: version {(first >> 16) & 0x7FFF} of SPDY, not {VERSION}")
        if (length := second & MAX_DATA) > self._max_control:
            raise ProtocolViolation(f"read frame: a control frame of {length} bytes, more than {self._max_control}")
        return HEADER.size + length

    def _data(self, stream: int, second: int) -> Iterator[Data]:
        if not stream:
            raise ProtocolViolation("read frame: data of stream 0")
        self._stream, self._fin, self._left = stream, bool(second >> 24 & FIN), second & MAX_DATA
        if not self._left:
            yield Data(stream, memoryview(b""), self._fin)


def data_header(stream: int, length: int, *, fin: bool = False) -> bytes:
    """Return the header for `length` bytes of a stream."""
    return HEADER.pack(stream, (FIN << 24 if fin else 0) | length)


def control(kind: int, flags: int, payload: bytes) -> bytes:
    return HEADER.pack(_CONTROL | VERSION << 16 | kind, flags << 24 | len(payload)) + payload


def syn_stream(stream: int, block: bytes, *, fin: bool = False) -> bytes:
    return control(Type.SYN_STREAM, FIN if fin else 0, _SYN_STREAM.pack(stream, 0, 0, 0) + block)


def syn_reply(stream: int, block: bytes) -> bytes:
    return control(Type.SYN_REPLY, 0, _U32.pack(stream) + block)


def pair(kind: Type, first: int, second: int) -> bytes:
    """Encode RST_STREAM, GOAWAY or WINDOW_UPDATE, which have two numbers."""
    return control(kind, 0, _PAIR.pack(first, second))


def ping(number: int) -> bytes:
    return control(Type.PING, 0, _U32.pack(number))


def settings(values: Mapping[int, int]) -> bytes:
    entries = b"".join(_PAIR.pack(key, value) for key, value in values.items())
    return control(Type.SETTINGS, 0, _U32.pack(len(values)) + entries)


def read_syn_stream(payload: memoryview) -> tuple[int, memoryview]:
    """Return the stream's id and the header block."""
    if len(payload) < _SYN_STREAM.size:
        raise ProtocolViolation("read SYN_STREAM: the frame is too short")
    number: int = _SYN_STREAM.unpack_from(payload)[0]
    return number & _ID, payload[_SYN_STREAM.size :]


def read_with_headers(payload: memoryview) -> tuple[int, memoryview]:
    """Return the stream's id and the header block of SYN_REPLY or HEADERS."""
    if len(payload) < _U32.size:
        raise ProtocolViolation("read headers: the frame is too short")
    number: int = _U32.unpack_from(payload)[0]
    return number & _ID, payload[_U32.size :]


def read_pair(payload: memoryview) -> tuple[int, int]:
    if len(payload) != _PAIR.size:
        raise ProtocolViolation(f"read frame: {len(payload)} bytes instead of {_PAIR.size}")
    first, second = _PAIR.unpack(payload)
    return first & _ID, second


def read_ping(payload: memoryview) -> int:
    if len(payload) != _U32.size:
        raise ProtocolViolation(f"read PING: {len(payload)} bytes instead of {_U32.size}")
    number: int = _U32.unpack(payload)[0]
    return number


def read_settings(payload: memoryview) -> Iterable[tuple[int, int]]:
    if len(payload) < _U32.size:
        raise ProtocolViolation("read SETTINGS: the frame is too short")
    (count,) = _U32.unpack_from(payload)
    if len(payload) != _U32.size + count * _PAIR.size:
        raise ProtocolViolation(f"read SETTINGS: {count} settings in {len(payload)} bytes")
    return [(key & MAX_DATA, value) for key, value in _PAIR.iter_unpack(payload[_U32.size :])]
