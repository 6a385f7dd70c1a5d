"""Images mounted as volumes (CRI `Mount.image`, KEP-4639): finds them, and describes their mounts to the shim."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from image.errors import ImageError
from pods.errors import ImageVolumeFailed, ImageVolumeNotFound, InvalidArgument
from pods.model import ContainerConfig, Mount, MountedImage, Propagation
from runtime.wire.calls import ImageMount

if TYPE_CHECKING:
    from image.store import ImageStore


def find(config: ContainerConfig, images: ImageStore) -> tuple[MountedImage, ...]:
    """Find the images that the request's mounts name. Raises ImageVolumeNotFound."""
    found = []
    for index, mount in enumerate(config.mounts):
        if mount.image is None:
            continue
        image = images.find(mount.image.image)
        if image is None:
            field = f"config.mounts[{index}].image"
            raise ImageVolumeNotFound(f"{field}: {mount.image.image!r} is not on this node: pull it first")
        found.append(MountedImage(mount=index, image_id=image.id))
    return tuple(found)


def shim_argument(
    config: ContainerConfig,
    mounted: tuple[MountedImage, ...],
    images: ImageStore,
    volumes_dir: Path,
    label: str,
) -> dict[str, ImageMount]:
    """Return the argument of the shim's `create`: each mount's source, with the image's layers and the path in them.

    `label` is the SELinux label of all their files, "" for none.
    Raises ImageVolumeFailed.
    """
    found = {}
    for entry in mounted:
        try:
            lower = tuple(str(layer) for layer in images.layers_of(entry.image_id))
        except ImageError as error:
            raise ImageVolumeFailed(f"mount image of config.mounts[{entry.mount}]: {error}") from error
        path = config.mounts[entry.mount].image_sub_path
        found[source(volumes_dir, entry.mount)] = ImageMount(lower=lower, sub_path=path, label=label)
    return found


def source(volumes_dir: Path, mount: int) -> str:
    """Return the source that stands for a mounted image in config.json; there is no file at that path."""
    return str(volumes_dir / f"image-{mount}")


def check(mount: Mount, field: str) -> None:
    """Refuse options that a mounted image cannot have. Raises InvalidArgument."""
    if not mount.readonly:
        raise InvalidArgument(f"{field}.readonly: an image can only be mounted read-only")
    if mount.propagation is not Propagation.PRIVATE:
        raise InvalidArgument(f"{field}.propagation: {mount.propagation.name}: an image can only be mounted PRIVATE")
