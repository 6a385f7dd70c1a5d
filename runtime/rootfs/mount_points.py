"""Checks mounts against what the image has at their destinations, as far as possible before mounting."""

from __future__ import annotations

import os
import stat

from linux.syscalls import open_in_root
from runtime.errors import WrongMountPoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Final

    from runtime.wire.calls import MountPoint

_ALWAYS_COVERED: Final = ("/dev", "/proc", "/sys")


def check_mount_points(root: int, wanted: Sequence[MountPoint], trees: Mapping[str, int]) -> None:
    """Refuse to mount a file on a directory of the image open at `root`, or a directory on anything else.

    Each of `wanted` is a directory if `directory` says so, or if the tree of `trees` named by `tree` is one.
    Destinations that another mount covers are not checked. Raises WrongMountPoint.
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
    """Return where the destination leads in the image and whether it is a directory; None if it does not exist."""
    try:
        fd = open_in_root(root, destination, os.O_PATH)
    except OSError:
        return None  # the start will report the error
    try:
        return os.readlink(f"/proc/self/fd/{fd}"), stat.S_ISDIR(os.fstat(fd).st_mode)
    finally:
        os.close(fd)
