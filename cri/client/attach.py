"""`crisp attach`: a running container's output here, and our input there."""

from __future__ import annotations

import argparse
import json

from cri.client.connection import Connection
from cri.client.names import find_container
from cri.client.remote import attend
from cri.v1 import api_pb2

_LEAVE = b"\x10\x11"  # Ctrl-P Ctrl-Q


class Detacher:
    """Looks for Ctrl-P Ctrl-Q in what is typed; a Ctrl-P is held back until it is known what follows."""

    def __init__(self) -> None:
        self._held = b""

    def __call__(self, typed: bytes) -> bytes | None:
        typed, self._held = self._held + typed, b""
        if _LEAVE in typed:
            return None
        if typed.endswith(_LEAVE[:1]):
            typed, self._held = typed[:-1], typed[-1:]
        return typed


def run(arguments: argparse.Namespace, connection: Connection) -> int:
    """Stay until the container ends, or Ctrl-P Ctrl-Q in its terminal; its exit status becomes ours."""
    container = find_container(connection, arguments.container)
    tty = _has_terminal(connection, container.id)
    request = api_pb2.AttachRequest(
        container_id=container.id, stdin=arguments.interactive, tty=tty, stdout=True, stderr=not tty
    )
    url = connection.change(connection.runtime.Attach, request).url
    return attend(url, stdin=arguments.interactive, tty=tty, keys=Detacher() if tty else bytes)


def _has_terminal(connection: Connection, container_id: str) -> bool:
    request = api_pb2.ContainerStatusRequest(container_id=container_id, verbose=True)
    info = connection.read(connection.runtime.ContainerStatus, request).info
    document = json.loads(info.get("info", "{}"))
    return bool(document.get("runtimeSpec", {}).get("process", {}).get("terminal"))
