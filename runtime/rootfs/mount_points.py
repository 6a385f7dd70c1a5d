"""Whether mounts fit to what an image has in their places, as far as that can be told before anything is mounted."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence

from linux.syscalls import open_in_root
from runtime.errors import WrongMountPoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from runtime.wire.calls import MountPoint

_ALWAYS_COVERED: Final = ("/dev", "/proc", "/sys")


def check_mount_points(root: int, wanted: Sequence[MountPoint], trees: Mapping[str, int]) -> None:
    """Refuse a file over a directory of the image open at `root`, and a directory over what is none.

    Each of `wanted` tells by `directory`, or by the one of `trees` that `tree` names, what it is. What another mount
    covers is not the image's to tell. Raises WrongMountPoint.
    """
    destinations = [mount.destination for mount in wanted]
    for index, mount in enumerate(wanted):
        found = _found(root, mount.destination)
        if found is None:
            continue
        place, place_is_directory = found
        others = (*_ALWAYS_COVERED, *destinations[:index], *destinations[index + 1 :])
        if place in destinations[:index] or any(place.startswith(other.rstrip("/") + "/") for other in others):
            continue
        tree = trees.get(mount.tree)
        is_directory = mount.directory if tree is None else stat.S_ISDIR(os.fstat(tree).st_mode)
        if is_directory != place_is_directory:
            raise WrongMountPoint.of(mount.source, mount.destination, is_directory=is_directory, field=mount.field)


def _found(root: int, destination: str) -> tuple[str, bool] | None:
    """Where that leads to in the image, and whether there is a directory; None where there is nothing yet."""
    try:
        fd = open_in_root(root, destination, os.O_PATH)
    except OSError:
        return None  # the start says so, if it still is so
    try:
        return os.readlink(f"/proc/self/fd/{fd}"), stat.S_ISDIR(os.fstat(fd).st_mode)
    finally:
        os.close(fd)
