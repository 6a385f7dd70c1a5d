"""Interfaces for observing calls: metrics and traces, which `cri.daemon` implements, and the pods' flight recorder."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

Answer = Callable[[Any, Any], Awaitable[Any]]  # takes a request and gRPC's context


class CallMeter(Protocol):
    """Counts the calls of one RPC."""

    def ended(self, seconds: float, code: str = "") -> None:
        """Record a call that took `seconds`; `code` is gRPC's name of its error, "" for none."""


# Calls that the recorder gets, whether they succeed or fail; and calls of which it gets only the failures.
RECORDED: Final = frozenset(
    (
        "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "CreateContainer", "StartContainer", "StopContainer",
        "RemoveContainer", "UpdateContainerResources", "CheckpointContainer", "PullImage", "RemoveImage",
    )
)  # fmt: skip
RECORDED_FAILURES: Final = frozenset(("ExecSync", "Exec", "Attach", "PortForward", "ReopenContainerLog"))


class CallRecorder(Protocol):
    """Records calls. `about` names the objects of a call (cri.subject)."""

    def answered(self, call: str, about: Mapping[str, str], seconds: float) -> None:
        """Record a call that succeeded."""

    def refused(
        self, call: str, about: Mapping[str, str], code: str, text: str, error: BaseException, seconds: float
    ) -> None:
        """Record a call that failed with `error`; the client got `text`. `code` is gRPC's name of the error."""

    def left(self, call: str, about: Mapping[str, str], seconds: float) -> None:
        """Record a call whose caller disconnected before the answer."""


class Meter(Protocol):
    """Makes counters of calls."""

    def of_call(self, rpc: str, *, timed: bool) -> CallMeter:
        """Return the counter for an RPC; with `timed` it also records durations."""


class Tracer(Protocol):
    """Makes spans."""

    def of_call(self, service: str, rpc: str, answer: Answer) -> Answer:
        """Return `answer` wrapped in a span."""
