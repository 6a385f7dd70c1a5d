"""Tests whether this machine can mount layers that are tars with indexes, by mounting some."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import ExitStack
from pathlib import Path

from image.erofs.layout import (
    BLOCK,
    DIRECTORY_TYPE,
    HEADER_BLOCKS,
    PLAIN,
    SLOT,
    Attributes,
    directory_blocks,
    header,
    inode,
)
from image.erofs.mount import INDEX, TAR, mount, name_of
from linux import syscalls


def why_not(place: Path) -> str:
    """Return why the kernel cannot mount a layer in the file system of `place`; "" if it can.

    Mounts two layers below an overlay, as for a pod, each named by a descriptor only (Linux 6.15).
    """
    try:
        with ExitStack() as undo:
            context = syscalls.fsopen("overlay")
            undo.callback(os.close, context)
            for number in range(2):
                layer = place / f"probe-{number}"
                layer.mkdir()
                undo.callback(shutil.rmtree, layer)
                (layer / TAR).write_bytes(bytes(BLOCK))
                (layer / INDEX).write_bytes(_empty())
                mounted = mount(layer)
                undo.callback(os.close, mounted)
                syscalls.fsconfig_string(context, "lowerdir+", os.fspath(name_of(mounted)))
            syscalls.fsconfig_create(context)
    except OSError as error:
        return f"{error.filename or error}: {error.strerror}" if error.filename else str(error.strerror)
    return ""


def _empty() -> bytes:
    """Encode the index of an empty layer."""
    content = directory_blocks([(b".", 1, DIRECTORY_TYPE), (b"..", 1, DIRECTORY_TYPE)])
    about = Attributes(stat.S_IFDIR | 0o755, 0, 0, 0)
    root = inode(about, 1, PLAIN, HEADER_BLOCKS, size=len(content), links=2)
    return (
        header(blocks=HEADER_BLOCKS + 2, inodes_at=HEADER_BLOCKS + 1, root=1, inodes=1, tar_blocks=1, identity=b"")
        + content
        + (bytes(SLOT) + root).ljust(BLOCK, b"\0")
    )
