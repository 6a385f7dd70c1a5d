"""Interfaces for observing calls: metrics and traces, which `cri.daemon` implements, and the pods' flight recorder."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

Answer = Callable[[Any, Any], Awaitable[Any]]  # takes a request and gRPC's context


class CallMeter(Protocol):
    """Counts the calls of one RPC."""

    def ended(self, seconds: float, code: str = "") -> None:
        """Record a call that took `seconds`; `code` is gRPC's name of its error, "" for none."""


# Calls that belong to the story of a pod or an image, however they end; and those of which only a failure does.
TOLD: Final = frozenset(
    (
        "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "CreateContainer", "StartContainer", "StopContainer",
        "RemoveContainer", "UpdateContainerResources", "CheckpointContainer", "PullImage", "RemoveImage",
    )
)  # fmt: skip
TOLD_OF_FAILURE: Final = frozenset(("ExecSync", "Exec", "Attach", "PortForward", "ReopenContainerLog"))


class Witness(Protocol):
    """Remembers calls. `about` is what a call is about (cri.subject)."""

    def answered(self, call: str, about: Mapping[str, str], seconds: float) -> None:
        """The call has succeeded."""

    def refused(
        self, call: str, about: Mapping[str, str], code: str, text: str, error: BaseException, seconds: float
    ) -> None:
        """It was answered with `text` because of the error; `code` is gRPC's name of it."""

    def left(self, call: str, about: Mapping[str, str], seconds: float) -> None:
        """Its caller went away before the answer."""


class Meter(Protocol):
    """Makes counters of calls."""

    def of_call(self, rpc: str, *, timed: bool) -> CallMeter:
        """Return the counter for an RPC; with `timed` it also records durations."""


class Tracer(Protocol):
    """Makes spans."""

    def of_call(self, service: str, rpc: str, answer: Answer) -> Answer:
        """Return `answer` wrapped in a span."""
