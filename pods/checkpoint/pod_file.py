"""`pod.json`, the file of a pod's checkpoint that has the configuration of the pod and of its containers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from pods import octets
from pods.checkpoint.restore import open_trusted
from pods.errors import InvalidArgument
from pods.model import Container, ContainerConfig, Sandbox, SandboxConfig

NAME: Final = "pod.json"
_LARGEST: Final = 16 << 20
_FORMAT: Final = 1


class PodCheckpoint(msgspec.Struct, frozen=True):
    """The content of the file."""

    format: int
    handler: str
    sandbox: SandboxConfig
    containers: dict[str, ContainerConfig]  # by name
    images: dict[str, str]  # image ids, by the container's name
    last_pid: int = 0  # the largest pid of the captured processes, in their PID namespaces


def archive(number: int) -> str:
    """Return the name of the archive of the container with this place in `PodCheckpoint.containers`."""
    return f"container-{number}.tar"


def write(sandbox: Sandbox, containers: Sequence[Container], last_pid: int, target: Path) -> None:
    """Write `pod.json`, the last file: a directory without it is no checkpoint."""
    description = PodCheckpoint(
        format=_FORMAT,
        handler=sandbox.runtime_handler,
        sandbox=sandbox.config,
        containers={one.config.metadata.name: one.config for one in containers},
        images={one.config.metadata.name: one.image_id for one in containers},
        last_pid=last_pid,
    )
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(octets.encode(description).encode())
        file.flush()
        os.fsync(file.fileno())
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read(directory: Path) -> PodCheckpoint:
    """Read the file in a directory. Raises NotFound, InvalidArgument, FailedPrecondition."""
    path = directory / NAME
    descriptor = open_trusted(str(path), "checkpoint_path")
    with os.fdopen(descriptor, "rb") as file:
        text = file.read(_LARGEST + 1)
    try:
        found = octets.decode(text.decode(), PodCheckpoint)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"checkpoint_path: {str(path)!r} is not a pod's checkpoint: {error}") from error
    if found.format != _FORMAT or len(text) > _LARGEST:
        raise InvalidArgument(f"checkpoint_path: {str(path)!r} has format {found.format}; this crisp reads {_FORMAT}")
    return found
