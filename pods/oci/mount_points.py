"""Describes a request's mounts to the shim, which compares them with the image at a container's creation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pods.model import ContainerConfig
from pods.oci import mounted_images
from pods.oci.mounts import normalized
from runtime.wire.calls import MountPoint


def are_directories(sources: Sequence[str]) -> tuple[bool, ...]:
    """Return whether each real host path is a directory, or will be made one; "" stands for a mounted image."""
    return tuple(not source or os.path.isdir(source) or not os.path.lexists(source) for source in sources)


def shim_argument(
    config: ContainerConfig, sources: Sequence[str], directories: Sequence[bool], volumes_dir: Path
) -> tuple[MountPoint, ...]:
    """Return each mount's source, kind (or the image that determines it) and destination, for the shim's `create`."""
    return tuple(
        MountPoint(
            source=source if mount.image is None else f"{mount.image.image}:{mount.image_sub_path}",
            destination=normalized(mount.container_path),
            directory=is_directory,
            tree=mounted_images.source(volumes_dir, index) if mount.image is not None else "",
            field=f"config.mounts[{index}]",
        )
        for index, (mount, source, is_directory) in enumerate(zip(config.mounts, sources, directories, strict=True))
    )
