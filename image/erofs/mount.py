"""Mounts layers that are a tar with an index, without a loop device (Linux 6.12).

Workers load this module, whose imports their memory is made of; what only crispd needs is in image.erofs.mounted.
"""

from __future__ import annotations

import os

from image.erofs.seal import Seal
from linux import syscalls

TAR, INDEX = "tar", "index"  # the names of a layer's two files in its directory
# A container's own overlay says what its programs may do; of what a layer has, this process is to open no device.
_ATTRIBUTES = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOSUID


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
