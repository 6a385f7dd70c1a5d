"""What sessions use of the pods: an interface, and its implementation, which asks the pods' shims."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Protocol

from pods.streams.places import ContainerPlace, PodPlace
from pods.streams.ports import open_port
from pods.streams.sessions import open_attach, open_exec


class Session(Protocol):
    """The streams of a command or container: non-blocking descriptors that the session owns, -1 for missing ones."""

    @property
    def stdin(self) -> int:
        """Descriptor to write to."""

    @property
    def stdout(self) -> int:
        """Descriptor to read; a terminal's only output."""

    @property
    def stderr(self) -> int:
        """Descriptor to read."""

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size, in characters. Raises PodError."""

    async def wait(self) -> int | None:
        """Wait for the end of the command or container, and return its exit code. Raises PodError."""

    def close_stdin(self) -> None:
        """Close stdin: the client sends no more."""

    async def close(self) -> None:
        """End the session."""


class Runtime(Protocol):
    """Runs commands in containers and opens ports of pods."""

    async def open_exec(
        self, place: ContainerPlace, argv: Sequence[str], *, tty: bool, stdin: bool, stdout: bool, stderr: bool
    ) -> Session:
        """Start a command in a container. Raises PodError."""

    async def open_attach(self, place: ContainerPlace, *, stdin: bool, stdout: bool, stderr: bool) -> Session:
        """Attach to a container. Raises PodError."""

    async def open_port(self, place: PodPlace, port: int) -> socket.socket:
        """Connect to a port on the pod's loopback. Returns a non-blocking socket. Raises PodError."""


class Shims:
    """Runs commands and opens ports by the shims' sockets. Needs no daemon."""

    open_exec = staticmethod(open_exec)
    open_attach = staticmethod(open_attach)
    open_port = staticmethod(open_port)
