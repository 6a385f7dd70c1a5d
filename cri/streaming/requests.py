"""Requests that kubelet made over CRI, kept until a client comes with the token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pods.streams.places import ContainerPlace, PodPlace
from runtime.wire.values import Value

if TYPE_CHECKING:
    from runtime.wire.values import Readers


@dataclass(frozen=True, slots=True)
class Command(Value):
    """An exec, or an attach if `argv` is None."""

    READ: ClassVar[Readers] = {
        "place": ContainerPlace.from_json,
        "argv": lambda items: None if items is None else tuple(items),
    }

    place: ContainerPlace
    argv: tuple[str, ...] | None
    tty: bool
    stdin: bool
    stdout: bool
    stderr: bool


@dataclass(frozen=True, slots=True)
class Ports(Value):
    """A port-forward. `ports` is for WebSocket clients; SPDY clients name the port with each stream."""

    READ: ClassVar[Readers] = {"place": PodPlace.from_json, "ports": tuple}

    place: PodPlace
    ports: tuple[int, ...]


Request = Command | Ports


def kind(request: Request) -> str:
    """Return the first component of the request's URL path."""
    if isinstance(request, Ports):
        return "portforward"
    return "attach" if request.argv is None else "exec"
