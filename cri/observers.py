"""Who looks on at calls. `cri.daemon` has both, metrics and traces, where the configuration wants them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

Answer = Callable[[Any, Any], Awaitable[Any]]  # of a request and gRPC's context


class CallMeter(Protocol):
    """Counts one RPC's calls."""

    def ended(self, seconds: float, code: str = "") -> None:
        """A call took so long; `code` is gRPC's name of the error it was answered with."""


class Meter(Protocol):
    """Counts calls."""

    def of_call(self, rpc: str, *, timed: bool) -> CallMeter:
        """What counts an RPC; `timed`: also how long its calls take."""


class Tracer(Protocol):
    """Makes spans."""

    def of_call(self, service: str, rpc: str, answer: Answer) -> Answer:
        """`answer` with a span around it."""
