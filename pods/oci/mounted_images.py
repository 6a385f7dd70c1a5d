"""Images mounted as volumes (CRI `Mount.image`, KEP-4639): which they are, and what the shim mounts for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pods.errors import InvalidArgument, NotFound
from pods.model import ContainerConfig, Mount, MountedImage, Propagation
from runtime.wire.calls import ImageMount

if TYPE_CHECKING:
    from image.store import ImageStore


def find(config: ContainerConfig, images: ImageStore) -> tuple[MountedImage, ...]:
    """The images of the store that the request's mounts name. Raises NotFound."""
    found = []
    for index, mount in enumerate(config.mounts):
        if mount.image is None:
            continue
        image = images.find(mount.image.image)
        if image is None:
            raise NotFound(f"config.mounts[{index}].image: {mount.image.image!r} is not on this node: pull it first")
        found.append(MountedImage(mount=index, image_id=image.id))
    return tuple(found)


def shim_argument(
    config: ContainerConfig, mounted: tuple[MountedImage, ...], images: ImageStore, volumes_dir: Path
) -> dict[str, ImageMount]:
    """What the shim's `create` takes: for each source of a mount, its layers and the path in them."""
    return {
        source(volumes_dir, entry.mount): ImageMount(
            lower=tuple(str(layer) for layer in images.layers_of(entry.image_id)),
            sub_path=config.mounts[entry.mount].image_sub_path,
        )
        for entry in mounted
    }


def source(volumes_dir: Path, mount: int) -> str:
    """The name that stands for a mounted image in config.json; there is nothing at that path."""
    return str(volumes_dir / f"image-{mount}")


def check(mount: Mount, field: str) -> None:
    """Refuse what a mounted image cannot be. Raises InvalidArgument."""
    if not mount.readonly:
        raise InvalidArgument(f"{field}.readonly: an image can only be mounted read-only")
    if mount.propagation is not Propagation.PRIVATE:
        raise InvalidArgument(f"{field}.propagation: {mount.propagation.name}: an image can only be mounted PRIVATE")
