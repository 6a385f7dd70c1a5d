"""Frames on the wire: 8 bytes, then a payload of at most 2^24-1 (specification, section 2.2).

Data frames are passed on in the pieces in which they arrive; a control frame is collected first, which is why its
length is bounded.
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
    """The settings that mean something here (section 2.6.4)."""

    MAX_CONCURRENT_STREAMS = 4
    INITIAL_WINDOW_SIZE = 7


@dataclass(slots=True)
class Control:
    """A control frame; `payload` is a view that ends with the next bytes fed."""

    type: int
    flags: int
    payload: memoryview


@dataclass(slots=True)
class Data:
    """A piece of a data frame; `fin` comes with its last one."""

    stream: int
    data: memoryview
    fin: bool


class Decoder:
    """Cuts a stream of bytes into frames."""

    def __init__(self, max_control: int) -> None:
        self._max_control = max_control
        self._held = bytearray()  # a header or a control frame that has not come whole yet
        self._stream = 0  # whose data frame is under way,
        self._fin = False  # whether it is the stream's last,
        self._left = 0  # and what of it has still to come

    def feed(self, view: memoryview) -> Iterator[Control | Data]:
        """The frames that are complete with `view`. Raises ProtocolViolation."""
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
        """The next frame (of a data frame its header) and what comes after it; None while it is not all there."""
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
        """Keep what is missing to `size` bytes; what is left of `view`."""
        missing = max(0, size - len(self._held))
        self._held += view[:missing]
        return view[missing:]

    def _size(self, header: memoryview | bytearray) -> int:
        """Bytes of a frame with this header that are collected; the header alone for data."""
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
    """What goes before `length` bytes of a stream."""
    return HEADER.pack(stream, (FIN << 24 if fin else 0) | length)


def control(kind: int, flags: int, payload: bytes) -> bytes:
    return HEADER.pack(_CONTROL | VERSION << 16 | kind, flags << 24 | len(payload)) + payload


def syn_stream(stream: int, block: bytes, *, fin: bool = False) -> bytes:
    return control(Type.SYN_STREAM, FIN if fin else 0, _SYN_STREAM.pack(stream, 0, 0, 0) + block)


def syn_reply(stream: int, block: bytes) -> bytes:
    return control(Type.SYN_REPLY, 0, _U32.pack(stream) + block)


def pair(kind: Type, first: int, second: int) -> bytes:
    """RST_STREAM, GOAWAY and WINDOW_UPDATE: two numbers."""
    return control(kind, 0, _PAIR.pack(first, second))


def ping(number: int) -> bytes:
    return control(Type.PING, 0, _U32.pack(number))


def settings(values: Mapping[int, int]) -> bytes:
    entries = b"".join(_PAIR.pack(key, value) for key, value in values.items())
    return control(Type.SETTINGS, 0, _U32.pack(len(values)) + entries)


def read_syn_stream(payload: memoryview) -> tuple[int, memoryview]:
    """The stream's id and the block of headers."""
    if len(payload) < _SYN_STREAM.size:
        raise ProtocolViolation("read SYN_STREAM: it is cut off")
    number: int = _SYN_STREAM.unpack_from(payload)[0]
    return number & _ID, payload[_SYN_STREAM.size :]


def read_with_headers(payload: memoryview) -> tuple[int, memoryview]:
    """Of SYN_REPLY and HEADERS: the stream's id and the block of headers."""
    if len(payload) < _U32.size:
        raise ProtocolViolation("read headers: the frame is cut off")
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
        raise ProtocolViolation("read SETTINGS: it is cut off")
    (count,) = _U32.unpack_from(payload)
    if len(payload) != _U32.size + count * _PAIR.size:
        raise ProtocolViolation(f"read SETTINGS: {count} settings do not take {len(payload)} bytes")
    return [(key & MAX_DATA, value) for key, value in _PAIR.iter_unpack(payload[_U32.size :])]
