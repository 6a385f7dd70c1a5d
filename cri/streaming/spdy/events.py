"""The events that `Connection.receive` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer opened a stream; answer with `reply` or `reset`."""

    stream: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Replied:
    """The peer accepted a stream of ours, or sent more headers on a stream."""

    stream: int
    headers: Mapping[str, str]


@dataclass(slots=True)
class Received:
    """Bytes of a stream. `data` is a view of the argument of `receive`, valid until the next call."""

    stream: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Ended:
    """The peer will send nothing more on the stream."""

    stream: int


@dataclass(frozen=True, slots=True)
class Reset:
    """The peer reset the stream, in both directions."""

    stream: int
    status: int


@dataclass(frozen=True, slots=True)
class WindowOpened:
    """More may be sent on the stream, or on all streams if it is 0."""

    stream: int


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to our ping."""

    number: int


@dataclass(frozen=True, slots=True)
class GoneAway:
    """The peer refuses new streams, and has ignored those above `last`."""

    last: int
    status: int


Event = Opened | Replied | Received | Ended | Reset | WindowOpened | Pong | GoneAway
