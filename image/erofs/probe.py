"""Tests whether this machine can mount and read layers that are tars with indexes, by doing it."""

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
    ENTRY_TYPES,
    HEADER_BLOCKS,
    INODE_SIZE,
    PAGE_BLOCKS,
    PLAIN,
    SLOT,
    TAR_BLOCK,
    Attributes,
    directory_blocks,
    header,
    inode,
)
from image.erofs.mount import INDEX, TAR
from image.erofs.mounted import Mounting, held
from image.erofs.seal import Seal
from linux import syscalls

_FILE = "file"
_CONTENT = bytes(range(256)) * 18  # a page and a block: they end within the tar's last page, and with the tar


def way(place: Path, there: Iterable[tuple[Path, Seal]] = ()) -> tuple[Mounting, str]:
    """Return how the kernel mounts layers in the file system of `place`, and why it cannot; "" if it can.

    The index is as small as they get, and the file at the tar's end is read: there are kernels that refuse the one, or
    fail at the other. A full disk has no room for a test: then the layers that are `there`, with their seals, are
    tried, without reading. What a killed test leaves in `place` is not in the way of the next.
    """
    try:
        with TemporaryDirectory(prefix="probe-", dir=place) as made:
            Path(made, TAR).write_bytes(bytes(BLOCK) + _CONTENT)
            Path(made, INDEX).write_bytes(_index())
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
                    if seal is None:
                        _read(mounted.root)
                overlay(roots)
                return ""
        except OSError as error:
            why = _told(error)
    return why


def _read(root: Path) -> None:
    """Read the file of the layer that was made for the test. Raises OSError."""
    try:
        content = (root / _FILE).read_bytes()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "a file in a mounted tar") from None
    if content != _CONTENT:
        raise OSError(errno.EIO, "other content was read than was written", "a file in a mounted tar")


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


def _index() -> bytes:
    """Encode the index of a layer that has one file."""
    root, file = 1, 1 + INODE_SIZE // SLOT
    names = [(b".", root, DIRECTORY_TYPE), (b"..", root, DIRECTORY_TYPE)]
    content = directory_blocks([*names, (_FILE.encode(), file, ENTRY_TYPES[stat.S_IFREG])])
    place = TAR_BLOCK + 1
    inodes = (
        bytes(SLOT * root),
        inode(Attributes(stat.S_IFDIR | 0o755, 0, 0, 0), root, PLAIN, HEADER_BLOCKS, size=len(content), links=2),
        inode(Attributes(stat.S_IFREG | 0o644, 0, 0, 0), file, PLAIN, place, size=len(_CONTENT), links=1),
    )
    tar_blocks = 1 + len(_CONTENT) // BLOCK
    described = header(
        blocks=PAGE_BLOCKS,
        inodes_at=HEADER_BLOCKS + 1,
        root=root,
        inodes=2,
        tar_blocks=tar_blocks,
        identity=b"",
    )
    return (described + content + b"".join(inodes)).ljust(PAGE_BLOCKS * BLOCK, b"\0")
