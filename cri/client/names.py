"""Finds the object that an operator means: by id, unique prefix of the id, or name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cri.client.connection import Connection
from cri.client.errors import UnknownName
from cri.v1 import api_pb2


@dataclass(frozen=True, slots=True)
class Candidate:
    """An object with a name. `live` ones win if ended ones have the same name."""

    kind: str  # "container" or "pod"
    id: str
    names: tuple[str, ...]
    live: bool
    message: Any = None  # the CRI message it came from


def resolve(query: str, candidates: Sequence[Candidate], kind: str = "container or pod") -> Candidate:
    """Return the candidate that `query` means: by id, by name, or by a prefix of its id.

    A name wins over a prefix, so that `crisp rm cafe` never removes an object whose id happens to begin like that.
    Raises UnknownName for no match or several.
    """
    named = [one for one in candidates if query in one.names]
    ways = (
        [one for one in candidates if one.id == query],
        named,
        [one for one in named if one.live],
        [one for one in candidates if one.id.startswith(query)] if query else [],
    )
    for found in ways:
        if len(found) == 1:
            return found[0]
    several = named or ways[-1]
    if not several:
        raise UnknownName(f"find {kind} {query!r}: no object has that id or name")
    listed = ", ".join(f"{one.id[:13]} ({one.names[-1]})" for one in several[:5])
    raise UnknownName(f"find {kind} {query!r}: {len(several)} match: {listed}; give more of an id")


def pod_candidates(pods: Iterable[api_pb2.PodSandbox]) -> list[Candidate]:
    """Return candidates for pods, named by name and by namespace/name."""
    return [
        Candidate(
            "pod",
            pod.id,
            (pod.metadata.name, f"{pod.metadata.namespace}/{pod.metadata.name}"),
            pod.state == api_pb2.SANDBOX_READY,
            pod,
        )
        for pod in pods
    ]


def container_candidates(
    containers: Iterable[api_pb2.Container], pods: Iterable[api_pb2.PodSandbox]
) -> list[Candidate]:
    """Return candidates for containers, named by name, by pod/name, and by a pod's name if it is alone there."""
    pod_names = {pod.id: pod.metadata.name for pod in pods}
    containers = list(containers)
    population: dict[str, int] = {}
    for container in containers:
        population[container.pod_sandbox_id] = population.get(container.pod_sandbox_id, 0) + 1
    candidates = []
    for container in containers:
        pod_name = pod_names.get(container.pod_sandbox_id, "")
        own = container.metadata.name
        alone = (pod_name,) if pod_name and population[container.pod_sandbox_id] == 1 else ()
        running = container.state == api_pb2.CONTAINER_RUNNING
        candidates.append(Candidate("container", container.id, (*alone, own, f"{pod_name}/{own}"), running, container))
    return candidates


def pods(connection: Connection) -> list[api_pb2.PodSandbox]:
    """List all pods, newest first."""
    reply = connection.read(connection.runtime.ListPodSandbox, api_pb2.ListPodSandboxRequest())
    return sorted(reply.items, key=lambda pod: pod.created_at, reverse=True)


def containers(connection: Connection) -> list[api_pb2.Container]:
    """List all containers, newest first."""
    reply = connection.read(connection.runtime.ListContainers, api_pb2.ListContainersRequest())
    return sorted(reply.containers, key=lambda container: container.created_at, reverse=True)


def find_container(connection: Connection, query: str) -> api_pb2.Container:
    """Find a container. Raises UnknownName."""
    found = resolve(query, container_candidates(containers(connection), pods(connection)), "container")
    container: api_pb2.Container = found.message
    return container


def find_object(connection: Connection, query: str) -> Candidate:
    """Find a pod or container; of both with one name, the pod. Raises UnknownName."""
    all_pods = pods(connection)
    of_pods = pod_candidates(all_pods)
    of_containers = container_candidates(containers(connection), all_pods)
    if any(query in pod.names for pod in of_pods):
        return resolve(query, of_pods, "pod")
    return resolve(query, [*of_pods, *of_containers])
