"""`crisp run`: runs a pod of one container; its output and exit status become ours."""

from __future__ import annotations

import argparse
import secrets
import signal
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from cri.client import runplan
from cri.client.connection import Connection
from cri.client.errors import CallFailed, UsageError
from cri.client.images import pull_image
from cri.client.lifecycle import remove_pod, stop_container
from cri.client.logfile import LogFile
from cri.client.logs import Printer, container_status, follow, is_running
from cri.v1 import api_pb2

_GRACE = 10  # seconds that a container has after the first Ctrl-C


def run_with(
    arguments: argparse.Namespace,
    connection: Connection,
    seccomp: api_pb2.SecurityProfile,
    started: Callable[[str], None],
    ended: Callable[[], None],
) -> int:
    """Run a container with a seccomp profile, wait for it, and remove its pod.

    `started` gets its id; `ended` is called when it has ended, before its removal.
    """
    name = runplan.pod_name(arguments.image, secrets.token_hex(3))
    pod_config = runplan.sandbox_config(arguments, name, str(uuid.uuid4()))
    container_config = runplan.container_config(arguments, "main", _image(connection, arguments.image))
    container_config.linux.security_context.seccomp.CopyFrom(seccomp)
    signal.signal(signal.SIGTERM, _interrupt)
    with ExitStack() as undo:
        pod_id = _start_pod(connection, pod_config, undo)
        container_id = _start_container(connection, pod_id, pod_config, container_config)
        started(container_id)
        status = _attend(connection, container_id)
        ended()
    return status


def run(arguments: argparse.Namespace, connection: Connection) -> int:
    """Make the pod, pulling the image if needed; start the container, and wait for it unless --detach is given.

    If a step fails, and with --rm at the end, everything is removed again; otherwise the pod is left stopped.
    """
    if arguments.detach and arguments.rm:
        raise UsageError("run: --detach and --rm exclude each other: no process would be left to remove the pod")
    name = arguments.name or runplan.pod_name(arguments.image, secrets.token_hex(3))
    pod_config = runplan.sandbox_config(arguments, name, str(uuid.uuid4()))
    image_id = _image(connection, arguments.image)
    container_config = runplan.container_config(arguments, name, image_id)
    signal.signal(signal.SIGTERM, _interrupt)
    with ExitStack() as undo:
        pod_id = _start_pod(connection, pod_config, undo)
        container_id = _start_container(connection, pod_id, pod_config, container_config)
        if arguments.detach:
            undo.pop_all()
            print(container_id)
            return 0
        status = _attend(connection, container_id)
        if not arguments.rm:
            undo.pop_all()
            connection.change(connection.runtime.StopPodSandbox, api_pb2.StopPodSandboxRequest(pod_sandbox_id=pod_id))
    return status


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _image(connection: Connection, reference: str) -> str:
    """Return the id of the image, pulled if the node does not have it."""
    request = api_pb2.ImageStatusRequest(image=api_pb2.ImageSpec(image=reference))
    reply = connection.read(connection.images.ImageStatus, request)
    return reply.image.id if reply.HasField("image") else pull_image(connection, reference)


def _start_pod(connection: Connection, config: api_pb2.PodSandboxConfig, undo: ExitStack) -> str:
    logs = Path(config.log_directory)
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"make log directory {logs}: {error.strerror}") from None
    undo.callback(_remove_empty, logs)
    reply = connection.change(connection.runtime.RunPodSandbox, api_pb2.RunPodSandboxRequest(config=config))
    pod = api_pb2.PodSandbox(
        id=reply.pod_sandbox_id, metadata=config.metadata, annotations=dict(config.annotations)
    )
    undo.callback(remove_pod, connection, pod)
    return reply.pod_sandbox_id


def _start_container(
    connection: Connection, pod_id: str, pod: api_pb2.PodSandboxConfig, config: api_pb2.ContainerConfig
) -> str:
    request = api_pb2.CreateContainerRequest(pod_sandbox_id=pod_id, config=config, sandbox_config=pod)
    container_id = connection.change(connection.runtime.CreateContainer, request).container_id
    connection.change(connection.runtime.StartContainer, api_pb2.StartContainerRequest(container_id=container_id))
    return container_id


def _attend(connection: Connection, container_id: str) -> int:
    """Print the container's output until it ends; return its exit status. Ctrl-C stops it, a second one kills it."""
    printer = Printer()
    with LogFile(Path(container_status(connection, container_id).log_path)) as log:
        grace = _GRACE
        while True:
            try:
                follow(log, lambda: is_running(connection, container_id), printer)
                return container_status(connection, container_id).exit_code
            except KeyboardInterrupt:
                grace = _stop(connection, container_id, grace)


def _stop(connection: Connection, container_id: str, grace: int) -> int:
    try:
        stop_container(connection, container_id, grace)
    except KeyboardInterrupt:
        stop_container(connection, container_id, 0)
    except CallFailed as error:
        if error.code != "NOT_FOUND":
            raise
    return 0


def _remove_empty(directory: Path) -> None:
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()
