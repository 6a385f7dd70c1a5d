"""Mounts of layers that are a tar with an index, without a loop device (Linux 6.12)."""

from __future__ import annotations

import os
from pathlib import Path

from linux import syscalls

TAR, INDEX = "tar", "index"  # the names of a layer's two files in its directory


def mount(directory: str | os.PathLike[str]) -> int:
    """A descriptor of a detached, read-only mount of the layer in `directory`. Raises OSError."""
    context = syscalls.fsopen("erofs")
    try:
        syscalls.fsconfig_string(context, "source", os.path.join(directory, INDEX))
        syscalls.fsconfig_string(context, "device", os.path.join(directory, TAR))
        syscalls.fsconfig_create(context)
        return syscalls.fsmount(context)
    finally:
        os.close(context)


def name_of(mounted: int) -> Path:
    """What a mount that only a descriptor of ours holds is called by whoever may look into this process."""
    return Path(f"/proc/{os.getpid()}/fd/{mounted}")
