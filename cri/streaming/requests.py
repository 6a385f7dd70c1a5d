"""What kubelet asked for over CRI, kept until a client comes with its token."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """Exec, or attach when `argv` is None."""

    container_id: str
    argv: tuple[str, ...] | None
    tty: bool
    stdin: bool
    stdout: bool
    stderr: bool


@dataclass(frozen=True, slots=True)
class Ports:
    """Port-forward; the ports are those of a WebSocket client, SPDY's name theirs themselves."""

    sandbox_id: str
    ports: tuple[int, ...]


Request = Command | Ports


def kind(request: Request) -> str:
    """The first word of the request's URL."""
    if isinstance(request, Ports):
        return "portforward"
    return "attach" if request.argv is None else "exec"
