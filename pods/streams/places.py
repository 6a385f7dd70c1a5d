"""Where streams are: all that must be known to open them at a pod's shim, without the daemon."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pods.errors import FailedPrecondition
from runtime.client import ShimClient, ShimGone
from runtime.wire.values import Value


@dataclass(frozen=True, slots=True)
class ContainerPlace(Value):
    """A container. `shim` is its sandbox's directory, where the shim listens."""

    container: str
    shim: str
    stdin: bool = False  # whether the container takes input
    terminal: bool = False  # whether the container has a terminal


@dataclass(frozen=True, slots=True)
class PodPlace(Value):
    """A pod's network. `in_sandbox`: only the sandbox of another runtime gets to its loopback interface."""

    sandbox: str
    shim: str
    in_sandbox: bool = False


def connect(place: ContainerPlace | PodPlace) -> ShimClient:
    """Connect to the shim, for one session or question. Raises FailedPrecondition."""
    try:
        return ShimClient.connect(Path(place.shim), lambda _event: None, lambda: None)
    except ShimGone as error:
        what = f"container {place.container}" if isinstance(place, ContainerPlace) else f"pod sandbox {place.sandbox}"
        raise FailedPrecondition(f"{what} is gone") from error


def has_shim(place: ContainerPlace) -> bool:
    """Whether a shim, or one that is about to succeed it, listens there."""
    try:
        connect(place).close()
    except FailedPrecondition:
        return False
    return True
