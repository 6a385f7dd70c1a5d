"""`crisp stop` and `crisp rm`."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable

from cri.client import names
from cri.client.connection import CHANGE_SECONDS, Connection
from cri.client.errors import ClientError
from cri.client.runplan import RUN_ANNOTATION, log_directory
from cri.v1 import api_pb2


def stop(arguments: argparse.Namespace, connection: Connection) -> int:
    """Stop containers, and pods with their containers. Each container has --time seconds to end by itself."""

    def stop_one(query: str) -> None:
        found = names.find_object(connection, query)
        if found.kind == "pod":
            stop_pod(connection, found.id, arguments.time)
        else:
            stop_container(connection, found.id, arguments.time)

    return for_each(arguments.ids, stop_one)


def remove(arguments: argparse.Namespace, connection: Connection) -> int:
    """Remove containers, and pods with their containers; running ones only with --force."""

    def remove_one(query: str) -> None:
        found = names.find_object(connection, query)
        if found.live and not arguments.force:
            raise ClientError(f"remove {found.kind} {query}: it is running; stop it first, or use --force")
        if found.kind == "pod":
            remove_pod(connection, found.message)
        else:
            if found.live:
                stop_container(connection, found.id, 0)
            request = api_pb2.RemoveContainerRequest(container_id=found.id)
            connection.change(connection.runtime.RemoveContainer, request)

    return for_each(arguments.ids, remove_one)


def stop_container(connection: Connection, container_id: str, grace: int) -> None:
    """Stop a container, and kill it after `grace` seconds. Raises CallFailed."""
    request = api_pb2.StopContainerRequest(container_id=container_id, timeout=grace)
    connection.change(connection.runtime.StopContainer, request, CHANGE_SECONDS + grace)


def stop_pod(connection: Connection, pod_id: str, grace: int) -> None:
    """Stop a pod's containers, each with `grace` seconds, then the pod. Raises CallFailed."""
    for container in names.containers(connection):
        if container.pod_sandbox_id == pod_id and container.state == api_pb2.CONTAINER_RUNNING:
            stop_container(connection, container.id, grace)
    request = api_pb2.StopPodSandboxRequest(pod_sandbox_id=pod_id)
    connection.change(connection.runtime.StopPodSandbox, request)


def remove_pod(connection: Connection, pod: api_pb2.PodSandbox) -> None:
    """Stop and remove a pod with its containers, and the logs that `crisp run` made. Raises CallFailed."""
    connection.change(connection.runtime.StopPodSandbox, api_pb2.StopPodSandboxRequest(pod_sandbox_id=pod.id))
    connection.change(connection.runtime.RemovePodSandbox, api_pb2.RemovePodSandboxRequest(pod_sandbox_id=pod.id))
    if RUN_ANNOTATION in pod.annotations:
        shutil.rmtree(log_directory(pod.metadata), ignore_errors=True)


def for_each(queries: list[str], act: Callable[[str], None]) -> int:
    """Act on each and print it; on a failure print the error and go on. Returns 1 if any failed, else 0."""
    failed = 0
    for query in queries:
        try:
            act(query)
        except ClientError as error:
            print(f"crisp: {error}", file=sys.stderr)
            failed = 1
        else:
            print(query, flush=True)
    return failed
