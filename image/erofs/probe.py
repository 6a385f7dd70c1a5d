"""Tests whether this machine can mount layers that are tars with indexes, by mounting some."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from image.erofs.attached import Attached
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
from image.erofs.mount import INDEX, TAR, Mounting, held
from image.erofs.seal import Seal
from linux import syscalls


def way(place: Path, there: Iterable[tuple[Path, Seal]] = ()) -> tuple[Mounting, str]:
    """Return how the kernel mounts layers in the file system of `place`, and why it cannot; "" if it can.

    A full disk has no room for a test: then the layers that are `there`, with their seals, are tried. What a killed
    test leaves in `place` is not in the way of the next.
    """
    try:
        with TemporaryDirectory(prefix="probe-", dir=place) as made:
            Path(made, TAR).write_bytes(bytes(BLOCK))
            Path(made, INDEX).write_bytes(_empty())
            return _way([(Path(made), None)])
    except OSError as error:
        layers = list(there) if error.errno in (errno.ENOSPC, errno.EDQUOT) else []
        mounting, why = _way(layers)
        return mounting, "" if layers and not why else _told(error)


def _way(layers: Sequence[tuple[Path, Seal | None]]) -> tuple[Mounting, str]:
    """Find a way to mount one of `layers`, or the reason why there is none."""
    why = _why_not(layers, held, _overlay)
    if not why:
        return held, ""
    try:
        attached = Attached()
    except OSError:
        return held, why
    if _why_not(layers, attached.mount, partial(attached.with_roots, _overlay)):
        attached.close()
        return held, why
    return attached.mount, ""


def _why_not(
    layers: Sequence[tuple[Path, Seal | None]], mounting: Mounting, overlay: Callable[[Sequence[Path]], None]
) -> str:
    """Return why none of `layers` can be mounted as pods use them, which is two below an overlay; "" if one can."""
    why = ""
    for layer, seal in layers:
        try:
            with ExitStack() as undo:
                roots = []
                for _ in range(2):
                    mounted = mounting(layer, seal)
                    undo.callback(mounted.unmount)
                    roots.append(mounted.root)
                overlay(roots)
                return ""
        except OSError as error:
            why = _told(error)
    return why


def _overlay(roots: Sequence[Path]) -> None:
    context = syscalls.fsopen("overlay")
    try:
        for root in roots:
            syscalls.fsconfig_string(context, "lowerdir+", os.fspath(root))
        syscalls.fsconfig_create(context)
    finally:
        os.close(context)


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
