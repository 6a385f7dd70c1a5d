"""Requests that kubelet made over CRI, kept until a client comes with the token."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """An exec, or an attach if `argv` is None."""

    container_id: str
    argv: tuple[str, ...] | None
    tty: bool
    stdin: bool
    stdout: bool
    stderr: bool


@dataclass(frozen=True, slots=True)
class Ports:
    """A port-forward. `ports` is for WebSocket clients; SPDY clients name the port with each stream."""

    sandbox_id: str
    ports: tuple[int, ...]


Request = Command | Ports


def kind(request: Request) -> str:
    """Return the first component of the request's URL path."""
    if isinstance(request, Ports):
        return "portforward"
    return "attach" if request.argv is None else "exec"
