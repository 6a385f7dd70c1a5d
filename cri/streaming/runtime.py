"""What the streaming server needs of the node (`pods.node.Node` has it)."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Protocol


class Session(Protocol):
    """A command's or container's streams. Descriptors are nonblocking and the session's, -1 where there is none."""

    @property
    def stdin(self) -> int:
        """To write to."""

    @property
    def stdout(self) -> int:
        """To read; of a terminal, all there is."""

    @property
    def stderr(self) -> int:
        """To read."""

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size, in characters. Raises PodError."""

    async def wait(self) -> int | None:
        """The exit code once the command, or the container, has ended. Raises PodError."""

    def close_stdin(self) -> None:
        """The client sends no more."""

    async def close(self) -> None:
        """The end, or the client went away."""


class Runtime(Protocol):
    """Where commands run and ports are."""

    async def open_exec(
        self, container_id: str, argv: Sequence[str], *, tty: bool, stdin: bool, stdout: bool, stderr: bool
    ) -> Session:
        """Start a command in a container. Raises PodError."""

    async def open_attach(self, container_id: str, *, stdin: bool, stdout: bool, stderr: bool) -> Session:
        """Attach to a container. Raises PodError."""

    async def open_port(self, sandbox_id: str, port: int) -> socket.socket:
        """A nonblocking connection to a port on the pod's loopback. Raises PodError."""
