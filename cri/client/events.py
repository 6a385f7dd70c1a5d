"""`crisp events`: prints events as they happen."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime

from cri.client.connection import Connection
from cri.client.render import plain, short
from cri.v1 import api_pb2


def run(arguments: argparse.Namespace, connection: Connection) -> int:
    """Print the events of pods and containers, one per line, until interrupted; JSON is one document per line."""
    for event in connection.stream(connection.runtime.GetContainerEvents, api_pb2.GetEventsRequest()):
        if arguments.output == "table":
            print(line(event), flush=True)
        else:
            import json

            json.dump(plain(event), sys.stdout, ensure_ascii=False)
            print(flush=True)
    return 0


def line(event: api_pb2.ContainerEventResponse) -> str:
    """Format an event: time, type, kind of object, id and name."""
    when = datetime.fromtimestamp(event.created_at / 1e9).astimezone().isoformat(timespec="milliseconds")
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
    return f"{when}  {what:8} {'pod' if of_pod else 'container':10} {short(event.container_id)}  {name}{ended}"
