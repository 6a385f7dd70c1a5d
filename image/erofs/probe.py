"""Tests whether this machine can mount layers that are tars with indexes, by mounting some."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

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
from image.erofs.seal import Seal
from linux import syscalls


def why_not(place: Path, there: Iterable[tuple[Path, Seal]] = ()) -> str:
    """Return why the kernel cannot mount a layer in the file system of `place`; "" if it can.

    A full disk has no room for a test: then the layers that are `there`, with their seals, are tried. What a killed
    test leaves in `place` is not in the way of the next.
    """
    try:
        with TemporaryDirectory(prefix="probe-", dir=place) as made:
            Path(made, TAR).write_bytes(bytes(BLOCK))
            Path(made, INDEX).write_bytes(_empty())
            return _why_not(Path(made), None)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return "" if full and any(not _why_not(*layer) for layer in there) else _told(error)


def _why_not(layer: Path, seal: Seal | None) -> str:
    """Return why `layer` cannot be mounted as pods use layers; "" if it can.

    That is two below an overlay, each known by a descriptor alone (Linux 6.15).
    """
    try:
        with ExitStack() as undo:
            context = syscalls.fsopen("overlay")
            undo.callback(os.close, context)
            for _ in range(2):
                mounted = mount(layer, seal)
                undo.callback(os.close, mounted)
                syscalls.fsconfig_string(context, "lowerdir+", os.fspath(name_of(mounted)))
            syscalls.fsconfig_create(context)
    except OSError as error:
        return _told(error)
    return ""


def _told(error: OSError) -> str:
    return f"{error.filename or error}: {error.strerror}" if error.filename else str(error.strerror)


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
