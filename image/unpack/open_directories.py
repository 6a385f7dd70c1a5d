"""Keeps the directories of a layer open while entries are made in them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import NamedTuple

from image.unpack.inodes import Inodes
from image.unpack.overlay import PLAIN_DIRECTORY
from image.unpack.walk import Walk, open_directory

_OPEN = 128  # descriptors kept open


class Place(NamedTuple):
    """An open directory. Its path contains no symlinks, even if an entry's name does."""

    descriptor: int
    path: bytes

    def child(self, name: bytes) -> bytes:
        """Return the path of an entry of the directory."""
        return self.path + b"/" + name if self.path else name


class OpenDirectories:
    """Directories below `root`, by the names in entries. A descriptor stays open until the next call.

    Missing directories on the way are made; `made` is called with the walk. Raises OSError.
    """

    def __init__(self, root: int, inodes: Inodes, made: Callable[[Walk], None]) -> None:
        self._root = Place(root, b"")
        self._inodes = inodes
        self._made = made
        self._open: dict[bytes, Place] = {}

    def find(self, name: bytes) -> Place:
        """Return the directory for `name`, a normalised one."""
        if not name:
            return self._root
        return self._open.get(name) or self._remember(name, self._opened(name))

    def enter(self, parent: Place, name: bytes) -> Place:
        """Return the directory that `parent` has under the last component of `name`, which is no symlink."""
        last = name.rpartition(b"/")[2]
        if (there := self._open.get(name)) is not None:
            return there
        return self._remember(name, Place(os.open(last, PLAIN_DIRECTORY, dir_fd=parent.descriptor), parent.child(last)))

    def forget(self) -> None:
        """Close all: from now on names may lead elsewhere."""
        for place in self._open.values():
            os.close(place.descriptor)
        self._open.clear()

    def _remember(self, name: bytes, place: Place) -> Place:
        if len(self._open) >= _OPEN:
            self.forget()
        self._open[name] = place
        return place

    def _opened(self, name: bytes) -> Place:
        try:
            return Place(open_directory(self._root.descriptor, name, links=False), name)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
        with Walk(self._root.descriptor, self._inodes) as walk:
            place = Place(walk.descend(name), walk.path)
        self._made(walk)
        return place
