"""Who looks on at calls: metrics and traces, which `cri.daemon` has where they are wanted, and the pods' recorder."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

Answer = Callable[[Any, Any], Awaitable[Any]]  # of a request and gRPC's context


class CallMeter(Protocol):
    """Counts one RPC's calls."""

    def ended(self, seconds: float, code: str = "") -> None:
        """A call took so long; `code` is gRPC's name of the error it was answered with."""


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

    def refused(self, call: str, about: Mapping[str, str], code: str, error: BaseException, seconds: float) -> None:
        """It was answered with an error; `code` is gRPC's name of it."""

    def left(self, call: str, about: Mapping[str, str], seconds: float) -> None:
        """Its caller went away before the answer."""


class Meter(Protocol):
    """Counts calls."""

    def of_call(self, rpc: str, *, timed: bool) -> CallMeter:
        """What counts an RPC; `timed`: also how long its calls take."""


class Tracer(Protocol):
    """Makes spans."""

    def of_call(self, service: str, rpc: str, answer: Answer) -> Answer:
        """`answer` with a span around it."""
