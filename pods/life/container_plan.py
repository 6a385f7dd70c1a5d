"""Plans a container from the request, its image and its checkpoint. Nothing is created here."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pods.checkpoint import members
from pods.errors import InvalidArgument, NotFound
from pods.model import Container, ContainerState, NamespaceMode
from pods.oci import mounted_images
from pods.oci.mounts import image_volumes
from pods.oci.process import process_args, stop_signal
from pods.state.transitions import require_running

if TYPE_CHECKING:
    from pathlib import Path

    from image.model import Image
    from image.store import ImageStore
    from pods.checkpoint.restore import Checkpoint
    from pods.life.chosen_image import ChosenImage
    from pods.model import ContainerConfig, Sandbox
    from pods.state.memory import State


@dataclass(frozen=True, slots=True)
class Plan:
    """What a requested container will be."""

    container: Container
    config: ContainerConfig  # the request, with what a checkpoint decides
    image: Image
    layers: Sequence[Path]
    checkpoint: Checkpoint | None
    args: Sequence[str]
    volumes: Mapping[str, str]  # the image's volumes: path in the container -> directory name


def plan(
    container_id: str, sandbox: Sandbox, config: ContainerConfig, chosen: ChosenImage, images: ImageStore
) -> Plan:
    """Plan a container. Raises InvalidArgument if the image makes it impossible, NotFound for a volume image."""
    image, checkpoint = chosen.image, chosen.checkpoint
    wanted = chosen.wanted(config)
    log_path = ""
    if config.log_path and sandbox.config.log_directory:
        log_path = os.path.join(sandbox.config.log_directory, config.log_path)
    args, volumes = process_args(wanted, image.config), image_volumes(config, image.config)
    container = Container(
        id=container_id,
        sandbox_id=sandbox.id,
        config=config,
        image_id=image.id,
        image_ref=image.repo_digests[0] if image.repo_digests else image.id,
        state=ContainerState.CREATED,
        created_at=time.time_ns(),
        log_path=log_path,
        stop_signal=stop_signal(config, image.config),
        mounted_images=mounted_images.find(config, images),
        checkpoint=str(checkpoint.directory / members.IMAGES) if checkpoint is not None else "",
        checkpoint_image_id=checkpoint.image_id if checkpoint is not None else "",
    )
    return Plan(container, wanted, image, images.layers(image), checkpoint, args, volumes)


def begun(container_id: str, sandbox: Sandbox, config: ContainerConfig) -> Container:
    """Return a container record of which only the request is known."""
    return Container(
        id=container_id, sandbox_id=sandbox.id, config=config, image_id="", image_ref="",
        state=ContainerState.CREATED, created_at=time.time_ns(),
    )  # fmt: skip


def target_pid(container: Container, state: State) -> int:
    """Return the pid of the target container whose PID namespace is joined; 0 if none is.

    Raises InvalidArgument, FailedPrecondition.
    """
    options = container.config.security.namespaces
    if options.pid is not NamespaceMode.TARGET:
        return 0
    field = "config.linux.security_context.namespace_options.target_id"
    try:
        target = state.find_container(options.target_id).container
    except NotFound as error:
        raise InvalidArgument(f"{field}: {error}") from error
    if target.sandbox_id != container.sandbox_id:
        raise InvalidArgument(f"{field}: container {target.id} is in another pod sandbox")
    require_running(target, field)
    return target.pid
