"""Finds a container's image, and the checkpoint that it is restored from, if any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pods.checkpoint import restore
from pods.errors import FailedPrecondition, NotFound

if TYPE_CHECKING:
    from pathlib import Path

    from image.model import Image
    from image.store import ImageStore
    from pods.checkpoint.restore import Checkpoint
    from pods.model import Container, ContainerConfig, Sandbox


@dataclass(frozen=True, slots=True)
class ChosenImage:
    """An image of the store; with a checkpoint, the image of the checkpointed container."""

    image: Image
    checkpoint: Checkpoint | None = None

    def wanted(self, config: ContainerConfig) -> ContainerConfig:
        """Return the request, with the members that a checkpoint decides replaced."""
        return config if self.checkpoint is None else self.checkpoint.wanted(config)


async def choose(
    config: ContainerConfig, sandbox: Sandbox, images: ImageStore, *, checkpoint_images: bool
) -> ChosenImage:
    """Find the image of a request. Raises NotFound, FailedPrecondition, and what reading a checkpoint raises."""
    name = config.image.image
    image = _found(name, images)
    if not restore.may_be_checkpoint(image, images):
        return ChosenImage(image)
    if not await restore.is_checkpoint(image, images):
        return ChosenImage(_found(name, images))  # it may have been removed meanwhile
    if not checkpoint_images:
        raise FailedPrecondition(
            f"image {name!r} holds a checkpoint: its processes get the rights that are saved in it, whatever the pod "
            "asks for. To allow such images set checkpoint_images = true in crisp.toml"
        )
    restore.check(sandbox)
    checkpoint = await restore.read(images.layers(image)[0], images, image.id)
    return ChosenImage(checkpoint.base, checkpoint)


def _found(name: str, images: ImageStore) -> Image:
    image = images.find(name)
    if image is None:
        raise NotFound(f"image {name!r} is not on this node: pull it first")
    return image


async def unpacked(archive: str, directory: Path, images: ImageStore) -> ChosenImage:
    """Unpack the checkpoint `archive` (a path) into the new `directory`. Raises what the unpacking raises."""
    await restore.unpack(archive, directory, images)
    checkpoint = await restore.read(directory, images)
    return ChosenImage(checkpoint.base, checkpoint)


async def require_trusted(container: Container, chosen: ChosenImage, images: ImageStore) -> None:
    """Check the container's images against the signature policy. Raises what `ImageStore.require_trusted` does."""
    config, checkpoint = container.config, chosen.checkpoint
    specs = [config.image, *(config.mounts[mounted.mount].image for mounted in container.mounted_images)]
    names = [spec.user_specified_image or spec.image for spec in specs if spec is not None]
    if checkpoint is not None:
        names = [checkpoint.base_name, *(names if checkpoint.image_id else names[1:])]
    for image_id, name in zip(container.images, names, strict=True):
        image = images.find(image_id)
        if image is not None:
            await images.require_trusted(image, name)
