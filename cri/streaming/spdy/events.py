"""What `Connection.receive` tells of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer opened a stream; it waits for `reply` or `reset`."""

    stream: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Replied:
    """The peer accepted a stream of ours, or sent more headers on a stream."""

    stream: int
    headers: Mapping[str, str]


@dataclass(slots=True)
class Received:
    """Bytes of a stream. `data` is a view of what `receive` was given: it is over with the next call."""

    stream: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Ended:
    """The peer has sent all that it will send on the stream."""

    stream: int


@dataclass(frozen=True, slots=True)
class Reset:
    """The peer gave the stream up, both ways."""

    stream: int
    status: int


@dataclass(frozen=True, slots=True)
class WindowOpened:
    """More may be sent on the stream; on all of them when it is 0."""

    stream: int


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping of ours."""

    number: int


@dataclass(frozen=True, slots=True)
class GoneAway:
    """The peer takes no new streams; those above `last` were not looked at."""

    last: int
    status: int


Event = Opened | Replied | Received | Ended | Reset | WindowOpened | Pong | GoneAway
