"""The overlay file system of a container's rootfs, as a detached mount (overlayfs.rst, fsopen(2)).

A detached mount is in no mount table: whoever holds its descriptor holds it up, and it is gone with the last one.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from typing import Final

from runtime import syscalls
from runtime.errors import OperationFailed, failing

_OLD_VALUE_LIMIT: Final = 255  # bytes in one fsconfig string before Linux 6.5 gave overlay `lowerdir+`


def mount_overlay(lower: Sequence[str], upper: str, work: str, *, readonly: bool = False) -> int:
    """A descriptor of a detached overlay mount: `lower` topmost first, `upper` and `work` on one file system.

    Mounted `volatile` where the kernel can (5.10): a container's writable layer is never mounted again after a
    crash of the machine, so nothing is lost by not syncing it at unmount.
    """
    with failing("mount `overlay` of layers", lower[0] if lower else "none"):
        attrs = syscalls.MOUNT_ATTR_RDONLY if readonly else 0
        # A container of an image without layers has a rootfs all the same; overlay needs one lower directory.
        try:
            return _mount(lower, upper, work, attrs, volatile=True)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return _mount(lower, upper, work, attrs, volatile=False)


def _mount(lower: Sequence[str], upper: str, work: str, attrs: int, *, volatile: bool) -> int:
    context = syscalls.fsopen("overlay")
    try:
        syscalls.fsconfig_string(context, "source", "overlay")
        base = _set_lower(context, lower)
        syscalls.fsconfig_string(context, "upperdir", upper)
        syscalls.fsconfig_string(context, "workdir", work)
        if volatile:
            syscalls.fsconfig_flag(context, "volatile")
        # Before 6.5 the kernel resolves relative layer names when it creates the superblock.
        with contextlib.chdir(base) if base else contextlib.nullcontext():
            syscalls.fsconfig_create(context)
        return syscalls.fsmount(context, attrs)
    finally:
        os.close(context)


def _set_lower(context: int, lower: Sequence[str]) -> str:
    """Give the layers to the file system context. Returns the directory to be in when it is created, if any."""
    try:
        for directory in lower:
            syscalls.fsconfig_string(context, "lowerdir+", directory)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    else:
        return ""
    base = os.path.commonpath([os.path.dirname(directory) for directory in lower])
    joined = ":".join(os.path.relpath(directory, base) for directory in lower)
    if len(joined) > _OLD_VALUE_LIMIT:
        raise OperationFailed(f"mount `overlay` of {len(lower)} layers, too many before Linux 6.5, in", base, errno.E2BIG)
    syscalls.fsconfig_string(context, "lowerdir", joined)
    return base
