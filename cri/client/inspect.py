"""`crisp inspect`: prints all details of a container, pod or image."""

from __future__ import annotations

import argparse
from typing import Any

from cri.client import names
from cri.client.connection import Connection
from cri.client.errors import UnknownName
from cri.client.render import document, with_info
from cri.v1 import api_pb2


def run(arguments: argparse.Namespace, connection: Connection) -> int:
    """Print the verbose status of each object; several are printed as a list."""
    if arguments.timeline:
        return _draw(arguments, connection)
    found = [_describe(connection, query, arguments.type) for query in arguments.ids]
    # A runtime spec does not fit in a table.
    form = "json" if arguments.output == "table" else arguments.output
    document(found[0] if len(found) == 1 else found, form)
    return 0


def _draw(arguments: argparse.Namespace, connection: Connection) -> int:
    """Draw the last start of each named object."""
    from cri.admin.v1 import admin_pb2
    from cri.client import chart

    for query in arguments.ids:
        answer = connection.read(connection.admin.Why, admin_pb2.WhyRequest(query=query))
        print("\n".join(chart.lines(answer)))
    return 0


def _describe(connection: Connection, query: str, kind: str | None) -> dict[str, Any]:
    if kind != "image" and (found := _find(connection, query, kind)) is not None:
        if found.kind == "pod":
            of_pod = api_pb2.PodSandboxStatusRequest(pod_sandbox_id=found.id, verbose=True)
            return with_info(connection.read(connection.runtime.PodSandboxStatus, of_pod))
        of_container = api_pb2.ContainerStatusRequest(container_id=found.id, verbose=True)
        return with_info(connection.read(connection.runtime.ContainerStatus, of_container))
    if kind in (None, "image"):
        of_image = api_pb2.ImageStatusRequest(image=api_pb2.ImageSpec(image=query), verbose=True)
        reply = connection.read(connection.images.ImageStatus, of_image)
        if reply.HasField("image"):
            return with_info(reply)
    raise UnknownName(f"find {kind or 'container, pod or image'} {query!r}: nothing has that id or name")


def _find(connection: Connection, query: str, kind: str | None) -> names.Candidate | None:
    """Find a container or pod by id or name; of both with one name, the container. Returns None if there is neither."""
    pods = names.pods(connection)
    of_pods = names.pod_candidates(pods)
    of_containers = names.container_candidates(names.containers(connection), pods)
    candidates = {"pod": of_pods, "container": of_containers}.get(kind or "", [*of_containers, *of_pods])
    matching = [one for one in candidates if query in one.names or (query and one.id.startswith(query))]
    if not matching:
        return None
    if kind is None and any(query in one.names for one in of_containers):
        return names.resolve(query, of_containers, "container")
    return names.resolve(query, matching)
