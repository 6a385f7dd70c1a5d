"""`crisp logs`, and how a container's log reaches the operator's own standard output and error."""

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

_SOONEST, _LATEST = 0.005, 0.25  # seconds between questions whether the container still runs


class Printer:
    """Writes entries to the stream they came from."""

    def __init__(self, timestamps: bool = False) -> None:
        self._timestamps = timestamps
        self._within: set[str] = set()  # streams whose last entry was a piece of a line

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
    """Print a log as it grows, until `running` says no and all of it is out."""
    interval, alive, next_question = _SOONEST, True, 0.0
    while True:
        # Asked before reading: what is logged after the end of a container does not exist.
        if time.monotonic() >= next_question:
            alive = running()
            next_question = time.monotonic() + interval
            interval = min(interval * 1.5, _LATEST)
        printer.print(log.read())
        if not alive:
            return
        log.wait(max(0.0, next_question - time.monotonic()))


def container_status(connection: Connection, container_id: str) -> api_pb2.ContainerStatus:
    """The status of a container. Raises CallFailed."""
    request = api_pb2.ContainerStatusRequest(container_id=container_id)
    return connection.read(connection.runtime.ContainerStatus, request).status


def is_running(connection: Connection, container_id: str) -> bool:
    """Whether a container may still write; one that was removed may not."""
    try:
        state = container_status(connection, container_id).state
    except CallFailed as error:
        if error.code == "NOT_FOUND":
            return False
        raise
    return state in (api_pb2.CONTAINER_RUNNING, api_pb2.CONTAINER_CREATED)


def run(arguments: argparse.Namespace, connection: Connection) -> int:
    """Print a container's log: all of it, its last lines, or as it grows."""
    container = find_container(connection, arguments.container)
    path = container_status(connection, container.id).log_path
    if not path:
        raise LogUnreadable(f"read log of {arguments.container}: the container was created without a log")
    printer = Printer(arguments.timestamps)
    with LogFile(Path(path), arguments.tail) as log:
        if arguments.follow:
            follow(log, lambda: is_running(connection, container.id), printer)
        else:
            printer.print(log.read())
        if log.malformed:
            print(f"crisp: {path}: {log.malformed} lines not in the CRI log format were left out", file=sys.stderr)
    return 0
