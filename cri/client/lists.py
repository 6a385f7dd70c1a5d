"""`crisp pods`, `crisp ps` and `crisp images`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from cri.client import names
from cri.client.connection import Connection
from cri.client.errors import CallFailed
from cri.client.logs import container_status
from cri.client.render import age, document, plain, short, size, table
from cri.v1 import api_pb2


def pods(arguments: argparse.Namespace, connection: Connection) -> int:
    """List pods, newest first."""
    found = names.pods(connection)
    if arguments.output != "table":
        document({"items": [plain(pod) for pod in found]}, arguments.output)
        return 0
    now = time.time_ns()
    rows = [
        (
            short(pod.id),
            age(pod.created_at, now),
            _pod_state(pod.state),
            pod.metadata.name,
            pod.metadata.namespace,
            str(pod.metadata.attempt),
            _addresses(connection, pod.id),
        )
        for pod in found
    ]
    table(("POD ID", "AGE", "STATE", "NAME", "NAMESPACE", "ATTEMPT", "IP"), rows)
    return 0


def containers(arguments: argparse.Namespace, connection: Connection) -> int:
    """List running containers, or all with --all, newest first."""
    found = [
        container
        for container in names.containers(connection)
        if arguments.all or container.state == api_pb2.CONTAINER_RUNNING
    ]
    if arguments.output != "table":
        document({"containers": [plain(container) for container in found]}, arguments.output)
        return 0
    pod_names = {pod.id: pod.metadata.name for pod in names.pods(connection)}
    tags = _tags(connection)
    now = time.time_ns()
    rows = [
        (
            short(container.id),
            container.image.user_specified_image or tags.get(container.image.image, container.image.image),
            age(container.created_at, now),
            _container_state(connection, container),
            container.metadata.name,
            str(container.metadata.attempt),
            short(container.pod_sandbox_id),
            pod_names.get(container.pod_sandbox_id, ""),
        )
        for container in found
    ]
    table(("CONTAINER", "IMAGE", "AGE", "STATE", "NAME", "ATTEMPT", "POD ID", "POD"), rows)
    return 0


def images(arguments: argparse.Namespace, connection: Connection) -> int:
    """List images, sorted by name."""
    reply = connection.read(connection.images.ListImages, api_pb2.ListImagesRequest())
    found = sorted(reply.images, key=lambda image: (*image.repo_tags, *image.repo_digests, image.id))
    if arguments.output != "table":
        document({"images": [plain(image) for image in found]}, arguments.output)
        return 0
    rows = [
        (repository, tag, short(image.id), size(image.size))
        for image in found
        for repository, tag in image_names(image.repo_tags, image.repo_digests)
    ]
    table(("IMAGE", "TAG", "IMAGE ID", "SIZE"), rows)
    return 0


def image_names(tags: Sequence[str], digests: Sequence[str]) -> list[tuple[str, str]]:
    """Return repository and tag of each name; for an image without a tag, the repository of its digest."""
    if tags:
        # A registry's port also follows a colon; the tag's is the last one.
        return [(repository, tag) for repository, _, tag in (name.rpartition(":") for name in tags)]
    return [(digests[0].partition("@")[0] if digests else "<none>", "<none>")]


def _tags(connection: Connection) -> dict[str, str]:
    """Return a name for each image id: kubelet creates containers by image id."""
    reply = connection.read(connection.images.ListImages, api_pb2.ListImagesRequest())
    return {image.id: image.repo_tags[0] for image in reply.images if image.repo_tags}


def _pod_state(state: int) -> str:
    return "ready" if state == api_pb2.SANDBOX_READY else "notready"


def _container_state(connection: Connection, container: api_pb2.Container) -> str:
    state = api_pb2.ContainerState.Name(container.state).removeprefix("CONTAINER_").lower()
    if container.state != api_pb2.CONTAINER_EXITED:
        return state
    try:
        return f"{state} ({container_status(connection, container.id).exit_code})"
    except CallFailed:  # removed since it was listed
        return state


def _addresses(connection: Connection, pod_id: str) -> str:
    try:
        request = api_pb2.PodSandboxStatusRequest(pod_sandbox_id=pod_id)
        network = connection.read(connection.runtime.PodSandboxStatus, request).status.network
    except CallFailed:  # removed since it was listed
        return ""
    return ",".join(filter(None, (network.ip, *(extra.ip for extra in network.additional_ips))))
