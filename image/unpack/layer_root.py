"""Opens the root directory of a layer of either kind: unpacked, or a tar with an index."""

from __future__ import annotations

import os
from collections.abc import Sequence

from image.erofs.mount import mount
from image.erofs.seal import Seal
from image.unpack.overlay import PLAIN_DIRECTORY


def open_root(names: Sequence[str], *, seal: str | None) -> int:
    """Open the root of a layer whose directory has one of `names`; it may be renamed to the last one meanwhile.

    `seal` is that of its index, None for an unpacked layer. Raises OSError.
    """
    for name in names[:-1]:
        try:
            return _open(name, seal)
        except FileNotFoundError:
            pass
    return _open(names[-1], seal)


def _open(name: str, seal: str | None) -> int:
    if seal is None:
        return os.open(name, PLAIN_DIRECTORY)
    mounted = mount(name, Seal.parse(seal))
    try:
        return os.open(".", PLAIN_DIRECTORY, dir_fd=mounted)  # the mount's own descriptor is O_PATH
    finally:
        os.close(mounted)
