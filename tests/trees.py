"""Other versions of the project's packages, of which a daemon can be."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.daemon import REPOSITORY

ROOMS = ("cri", "image", "linux", "network", "pods", "runtime")


def copied(place: Path, rooms: Sequence[str] = ROOMS) -> Path:
    """Make a directory with copies of these packages, and links to the others."""
    place.mkdir()
    for room in ROOMS:
        if room in rooms:
            shutil.copytree(REPOSITORY / room, place / room)
        else:
            (place / room).symlink_to(REPOSITORY / room)
    return place


def changed(
    place: Path,
    module: str = "runtime/shim/shim.py",
    addition: str = "# of another version\n",
    rooms: Sequence[str] = ROOMS,
) -> Path:
    """Make the same as another version: with an addition to a module."""
    copied(place, rooms)
    with (place / module).open("a") as file:
        file.write(addition)
    return place
