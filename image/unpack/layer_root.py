"""Opens the root directory of a layer of either kind: unpacked, or a tar with an index."""

from __future__ import annotations

import os
from collections.abc import Sequence

from image.erofs.mount import mount
from image.unpack.overlay import PLAIN_DIRECTORY


def open_root(names: Sequence[str], *, indexed: bool) -> int:
    """Open the root of a layer whose directory has one of `names`; it may be renamed to the last one meanwhile.

    Raises OSError.
    """
    for name in names[:-1]:
        try:
            return _open(name, indexed)
        except FileNotFoundError:
            pass
    return _open(names[-1], indexed)


def _open(name: str, indexed: bool) -> int:
    if not indexed:
        return os.open(name, PLAIN_DIRECTORY)
    mounted = mount(name)
    try:
        return os.open(".", PLAIN_DIRECTORY, dir_fd=mounted)  # the mount's own descriptor is O_PATH
    finally:
        os.close(mounted)
