"""`crisp attach`: connects to a running container's input and output."""

from __future__ import annotations

import argparse
import json
import time

from cri.client.connection import Connection
from cri.client.logs import container_status
from cri.client.names import find_container
from cri.client.remote import attend
from cri.v1 import api_pb2

_LEAVE = b"\x10\x11"  # Ctrl-P Ctrl-Q
_LOOKS, _INTERVAL = 10, 0.02  # checks of the container's state, which changes shortly after its streams end; seconds


class Detacher:
    """Detects Ctrl-P Ctrl-Q in typed input. Holds a Ctrl-P back until the next key is known."""

    def __init__(self) -> None:
        self._held = b""
        self.left = False

    def __call__(self, typed: bytes) -> bytes | None:
        typed, self._held = self._held + typed, b""
        if _LEAVE in typed:
            self.left = True
            return None
        if typed.endswith(_LEAVE[:1]):
            typed, self._held = typed[:-1], typed[-1:]
        return typed


def run(arguments: argparse.Namespace, connection: Connection) -> int:
    """Stay attached until the container ends, or Ctrl-P Ctrl-Q in its terminal. Returns the container's exit status."""
    container = find_container(connection, arguments.container)
    tty = _has_terminal(connection, container.id)
    request = api_pb2.AttachRequest(
        container_id=container.id, stdin=arguments.interactive, tty=tty, stdout=True, stderr=not tty
    )
    url = connection.change(connection.runtime.Attach, request).url
    detacher = Detacher()
    attend(url, stdin=arguments.interactive, tty=tty, keys=detacher if tty else bytes)
    return 0 if detacher.left else _exit_status(connection, container.id)


def _exit_status(connection: Connection, container_id: str) -> int:
    """Return the container's exit status, which the stream does not report; 0 if it runs on after our input's end."""
    for _ in range(_LOOKS):
        status = container_status(connection, container_id)
        if status.state == api_pb2.CONTAINER_EXITED:
            exit_code: int = status.exit_code
            return exit_code
        time.sleep(_INTERVAL)
    return 0


def _has_terminal(connection: Connection, container_id: str) -> bool:
    request = api_pb2.ContainerStatusRequest(container_id=container_id, verbose=True)
    info = connection.read(connection.runtime.ContainerStatus, request).info
    document = json.loads(info.get("info", "{}"))
    return bool(document.get("runtimeSpec", {}).get("process", {}).get("terminal"))
