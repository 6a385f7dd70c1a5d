"""`crisp events`: prints events, and the causes of troubles, as they happen."""

from __future__ import annotations

import argparse
import json
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Final

from cri.admin.v1 import admin_pb2
from cri.client.connection import Connection
from cri.client.errors import CallFailed, ClientError
from cri.client.render import plain, printable, short
from cri.v1 import api_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

    _Queue = queue.SimpleQueue[Message | ClientError]

_OTHER_RUNTIME: Final = "UNIMPLEMENTED"


def run(arguments: argparse.Namespace, connection: Connection) -> int:
    """Print the events of pods and containers, one per line, until interrupted; JSON is one document per line.

    Causes are printed between the events; another runtime tells none.
    """
    told: _Queue = queue.SimpleQueue()
    connection.probe()
    events = connection.stream(connection.runtime.GetContainerEvents, api_pb2.GetEventsRequest())
    causes = connection.stream(connection.admin.GetCauses, admin_pb2.GetCausesRequest())
    _pour(lambda: events, told)
    _pour(lambda: _of_crisp(causes), told)
    while True:
        match told.get():
            case ClientError() as error:
                raise error
            case one if arguments.output != "table":
                json.dump(plain(one), sys.stdout, ensure_ascii=False)
                print(flush=True)
            case api_pb2.ContainerEventResponse() as event:
                print(line(event), flush=True)
            case admin_pb2.CauseResponse() as cause:
                print(printable(cause_line(cause)), flush=True)


def _pour(messages: Callable[[], Iterator[Message]], into: _Queue) -> None:
    """Put a stream's messages into the queue, from a thread of its own; its error at last."""

    def pour() -> None:
        try:
            for message in messages():
                into.put(message)
        except ClientError as error:
            into.put(error)

    threading.Thread(target=pour, daemon=True).start()


def _of_crisp(causes: Iterator[admin_pb2.CauseResponse]) -> Iterator[admin_pb2.CauseResponse]:
    try:
        yield from causes
    except CallFailed as error:
        if error.code != _OTHER_RUNTIME:
            raise


def line(event: api_pb2.ContainerEventResponse) -> str:
    """Format an event: time, type, kind of object, id and name."""
    what = api_pb2.ContainerEventType.Name(event.container_event_type).split("_")[1].lower()
    pod = event.pod_sandbox_status
    of_pod = event.container_id == pod.id
    name = f"{pod.metadata.namespace}/{pod.metadata.name}"
    ended = ""
    for status in event.containers_statuses:
        if status.id == event.container_id:
            name += f"/{status.metadata.name}"
            if event.container_event_type == api_pb2.CONTAINER_STOPPED_EVENT:
                ended = f" ({status.exit_code} {status.reason})"
    kind = "pod" if of_pod else "container"
    return f"{_when(event.created_at)}  {what:8} {kind:10} {short(event.container_id):13}  {name}{ended}"


def cause_line(cause: admin_pb2.CauseResponse) -> str:
    """Format a cause in the same columns."""
    kind = "container" if cause.container else "pod" if "/" in cause.subject and cause.id else ""
    name = f"{cause.subject}/{cause.container}" if cause.container else cause.subject
    return f"{_when(cause.at)}  cause    {kind:10} {short(cause.id):13}  {name}: {cause.name}: {cause.cause}"


def _when(at: int) -> str:
    return datetime.fromtimestamp(at / 1e9).astimezone().isoformat(timespec="milliseconds")
