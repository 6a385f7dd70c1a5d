"""`crisp exec`: a command in a running container, by ExecSync."""

from __future__ import annotations

import argparse
import sys

from cri.client.connection import NO_LIMIT, Connection
from cri.client.errors import UsageError
from cri.client.names import find_container
from cri.v1 import api_pb2


def run(arguments: argparse.Namespace, connection: Connection) -> int:
    """Run a command to its end; its output becomes ours, and so does its exit status."""
    command = arguments.command_line[arguments.command_line[:1] == ["--"] :]
    if not command:
        raise UsageError(f"exec {arguments.container}: no command given")
    container = find_container(connection, arguments.container)
    request = api_pb2.ExecSyncRequest(container_id=container.id, cmd=command, timeout=arguments.exec_timeout)
    reply = connection.change(connection.runtime.ExecSync, request, NO_LIMIT)
    sys.stdout.buffer.write(reply.stdout)
    sys.stdout.flush()
    sys.stderr.buffer.write(reply.stderr)
    sys.stderr.flush()
    return reply.exit_code
