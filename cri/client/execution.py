"""`crisp exec`: runs a command in a container, by ExecSync or with streams."""

from __future__ import annotations

import argparse
import sys

from cri.client.connection import NO_LIMIT, Connection
from cri.client.errors import UsageError
from cri.client.names import find_container
from cri.v1 import api_pb2


def run(arguments: argparse.Namespace, connection: Connection) -> int:
    """Run a command; its output and exit status become ours."""
    command = arguments.command_line[arguments.command_line[:1] == ["--"] :]
    if not command:
        raise UsageError(f"exec {arguments.container}: give a command to run")
    container = find_container(connection, arguments.container)
    if arguments.interactive or arguments.tty:
        return _with_streams(arguments, connection, container.id, command)
    request = api_pb2.ExecSyncRequest(container_id=container.id, cmd=command, timeout=arguments.exec_timeout)
    reply = connection.change(connection.runtime.ExecSync, request, NO_LIMIT)
    sys.stdout.buffer.write(reply.stdout)
    sys.stdout.flush()
    sys.stderr.buffer.write(reply.stderr)
    sys.stderr.flush()
    return reply.exit_code


def _with_streams(
    arguments: argparse.Namespace, connection: Connection, container_id: str, command: list[str]
) -> int:
    if arguments.sync or arguments.exec_timeout:
        raise UsageError(f"exec {arguments.container}: --sync and --timeout cannot be used with --interactive or --tty")
    from cri.client.remote import attend  # takes longer to import than everything else here

    stdin, tty = arguments.interactive, arguments.tty
    request = api_pb2.ExecRequest(
        container_id=container_id, cmd=command, tty=tty, stdin=stdin, stdout=True, stderr=not tty
    )
    return attend(connection.change(connection.runtime.Exec, request).url, stdin=stdin, tty=tty)
