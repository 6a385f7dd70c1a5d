"""What a tree's inodes have that the process which makes the tree may not give them: owners, devices, attributes."""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from image.erofs.layout import TooLarge

_MADE_LIMIT = 1 << 24  # inodes that were ever made: four bytes each
_KINDS_LIMIT = 1 << 18  # pairs of an owner and a mode
_TAKEN_LIMIT = 64 << 20  # bytes of attributes and devices, approximately
_COST = 400  # bytes of each, without name and value
_DIRECTORY_MODE = 0o755


class Owned(NamedTuple):
    uid: int
    gid: int
    mode: int  # its lower twelve bits


_NOT_NOTED = Owned(0, 0, 0)


@dataclass(slots=True)
class Notes:
    """Notes about a tree's inodes by their numbers, which ascend from 1 as in a new tmpfs.

    Without a note an inode is root's and has no attributes, and a directory has mode 0755. The mode of a file is its
    own. A device is an empty file in the tree. Raises TooLarge for more than is worth memory.
    """

    _kinds: list[Owned] = field(default_factory=lambda: [_NOT_NOTED])
    _numbers: dict[Owned, int] = field(default_factory=dict)
    _owned: array[int] = field(default_factory=lambda: array("I"))  # by inode: an index into `_kinds`
    _devices: dict[int, tuple[int, int]] = field(default_factory=dict)
    _xattrs: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    _taken: int = 0

    def own(self, ino: int, owned: Owned) -> None:
        if (number := self._numbers.get(owned)) is None:
            number = self._numbers[owned] = len(self._kinds)
            self._kinds.append(owned)
        if ino >= _MADE_LIMIT or number >= _KINDS_LIMIT:
            raise TooLarge("too many inodes or owners")
        if ino >= len(self._owned):
            self._owned.frombytes(bytes(self._owned.itemsize * (ino + 1024 - len(self._owned))))
        self._owned[ino] = number

    def owned(self, there: os.stat_result) -> Owned:
        """Return who owns an inode of the tree, and its mode."""
        number = self._owned[there.st_ino] if there.st_ino < len(self._owned) else 0
        found = self._kinds[number]
        if not stat.S_ISDIR(there.st_mode):
            return Owned(found.uid, found.gid, stat.S_IMODE(there.st_mode))
        return found if number else Owned(0, 0, _DIRECTORY_MODE)

    def make_device(self, ino: int, kind: int, device: int) -> None:
        """Note that a file of the tree is a device of this type (S_IFCHR or S_IFBLK) and number."""
        self._take(_COST)
        self._devices[ino] = kind, device

    def device(self, there: os.stat_result) -> tuple[int, int]:
        """Return the type and the device number of an inode of the tree."""
        return self._devices.get(there.st_ino, (stat.S_IFMT(there.st_mode), there.st_rdev))

    def set_xattr(self, ino: int, key: bytes, value: bytes | None) -> None:
        """Note an extended attribute; with None there is none."""
        if value is not None:
            self._take(_COST + len(key) + len(value))
            self._xattrs.setdefault(ino, {})[key] = value
        elif ino in self._xattrs:
            self._xattrs[ino].pop(key, None)

    def xattrs(self, ino: int) -> Mapping[bytes, bytes]:
        return self._xattrs.get(ino, {})

    def _take(self, size: int) -> None:
        self._taken += size
        if self._taken > _TAKEN_LIMIT:
            raise TooLarge(f"extended attributes and devices that take more than {_TAKEN_LIMIT} bytes of memory")
