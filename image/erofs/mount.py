"""Mounts layers that are a tar with an index, without a loop device (Linux 6.12)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from image.erofs.seal import Seal
from linux import syscalls

TAR, INDEX = "tar", "index"  # the names of a layer's two files in its directory
# A container's own overlay says what its programs may do; of what a layer has, this process is to open no device.
_ATTRIBUTES = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOSUID


@dataclass(frozen=True, slots=True)
class Mounted:
    """A layer that the kernel has mounted, by the path of its root."""

    root: Path
    unmount: Callable[[], None]


class Mounting(Protocol):
    """A way to mount the layer in a directory: `held`, or that of `image.erofs.attached`."""

    def __call__(self, directory: str | os.PathLike[str], seal: Seal | None) -> Mounted: ...


def held(directory: str | os.PathLike[str], seal: Seal | None) -> Mounted:
    """Mount the layer in `directory`, by a descriptor that this process keeps. Raises OSError, Changed."""
    descriptor = mount(directory, seal)
    return Mounted(name_of(descriptor), partial(os.close, descriptor))


def mount(directory: str | os.PathLike[str], seal: Seal | None) -> int:
    """Mount the layer in `directory`, detached and read-only, and return the descriptor.

    Both files are named here: an index cannot say what else the kernel should read. `seal` is that of the index, None
    if it was just written by this process. Raises OSError, Changed.
    """
    if seal is not None:
        index = os.open(os.path.join(directory, INDEX), os.O_RDONLY | os.O_CLOEXEC)
        try:
            seal.require(index)
        finally:
            os.close(index)
    context = syscalls.fsopen("erofs")
    try:
        syscalls.fsconfig_string(context, "source", os.path.join(directory, INDEX))
        syscalls.fsconfig_string(context, "device", os.path.join(directory, TAR))
        syscalls.fsconfig_create(context)
        return syscalls.fsmount(context, _ATTRIBUTES)
    finally:
        os.close(context)


def name_of(mounted: int) -> Path:
    """Return a path for a mount that only our descriptor holds. Processes that may inspect this one can use it."""
    return Path(f"/proc/{os.getpid()}/fd/{mounted}")
