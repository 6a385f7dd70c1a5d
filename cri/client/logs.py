"""`crisp logs`: prints a container's log to standard output and standard error."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from cri.client.connection import Connection
from cri.client.errors import CallFailed, LogUnreadable
from cri.client.logfile import Entry, LogFile
from cri.client.names import find_container
from cri.v1 import api_pb2

_SOONEST, _LATEST = 0.005, 0.25  # seconds between checks whether the container still runs


class Printer:
    """Writes each entry to the stream that it came from."""

    def __init__(self, timestamps: bool = False) -> None:
        self._timestamps = timestamps
        self._within: set[str] = set()  # streams whose last entry was part of a line

    def print(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            out = sys.stdout.buffer if entry.stream == "stdout" else sys.stderr.buffer
            if self._timestamps and entry.stream not in self._within:
                out.write(entry.timestamp + b" ")
            out.write(entry.content)
            (self._within.add if entry.partial else self._within.discard)(entry.stream)
        sys.stdout.flush()
        sys.stderr.flush()


def follow(log: LogFile, running: Callable[[], bool], printer: Printer) -> None:
    """Print a log as it grows, until `running` returns False and everything is printed."""
    interval, alive, next_question = _SOONEST, True, 0.0
    while True:
        # Check before reading: a container that has ended logs nothing more.
        if time.monotonic() >= next_question:
            alive = running()
            next_question = time.monotonic() + interval
            interval = min(interval * 1.5, _LATEST)
        printer.print(log.read())
        if not alive:
            return
        log.wait(max(0.0, next_question - time.monotonic()))


def container_status(connection: Connection, container_id: str) -> api_pb2.ContainerStatus:
    """Return a container's status. Raises CallFailed."""
    request = api_pb2.ContainerStatusRequest(container_id=container_id)
    return connection.read(connection.runtime.ContainerStatus, request).status


def is_running(connection: Connection, container_id: str) -> bool:
    """Return whether a container may still write to its log; a removed one does not."""
    try:
        state = container_status(connection, container_id).state
    except CallFailed as error:
        if error.code == "NOT_FOUND":
            return False
        raise
    return state in (api_pb2.CONTAINER_RUNNING, api_pb2.CONTAINER_CREATED)


def run(arguments: argparse.Namespace, connection: Connection) -> int:
    """Print a container's log: all of it or its last lines; with --follow as it grows."""
    container = find_container(connection, arguments.container)
    path = container_status(connection, container.id).log_path
    if not path:
        raise LogUnreadable(f"read log of {arguments.container}: the container has no log: it was created without one")
    printer = Printer(arguments.timestamps)
    with LogFile(Path(path), arguments.tail) as log:
        if arguments.follow:
            follow(log, lambda: is_running(connection, container.id), printer)
        else:
            printer.print(log.read())
        if log.malformed:
            print(f"crisp: {path}: left out {log.malformed} lines that are not in the CRI log format", file=sys.stderr)
    return 0
