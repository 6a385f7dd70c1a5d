"""POSIX access control lists as extended attributes have them (Linux: fs/posix_acl.c, acl(5))."""

from __future__ import annotations

import errno
import os
import struct
from typing import NamedTuple

ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"

_VERSION = 2
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID = 0xFFFF_FFFF
# What may follow what: owners first, then named users, the group, named groups, the mask, others.
_ORDER = (_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER)
_NAMED = (_USER, _GROUP)
_SHIFTS = {_USER_OBJ: 6, _GROUP_OBJ: 3, _OTHER: 0}


class Entry(NamedTuple):
    tag: int
    permissions: int
    id: int


def parse(value: bytes) -> list[Entry]:
    """Return the entries of a list. Raises OSError as setxattr(2) does, whatever the file is."""
    if len(value) < _HEADER.size:
        raise _error(errno.EINVAL)
    if _HEADER.unpack_from(value)[0] != _VERSION:
        raise _error(errno.EOPNOTSUPP)
    if (len(value) - _HEADER.size) % _ENTRY.size:
        raise _error(errno.EINVAL)
    entries = [Entry(*fields) for fields in _ENTRY.iter_unpack(value[_HEADER.size :])]
    if any(entry.tag not in _ORDER or (entry.tag in _NAMED and entry.id == _NO_ID) for entry in entries):
        raise _error(errno.EINVAL)
    return entries


def set_default(entries: list[Entry]) -> bytes | None:
    """Return what a directory has whose default list gets these entries; None without any. Raises OSError."""
    _require_valid(entries)
    return _encode(entries) if entries else None


def set_access(mode: int, entries: list[Entry]) -> tuple[int, bytes | None]:
    """Return the mode and the list of a file of this mode whose access list gets these entries.

    A list that says no more than a mode is none. Raises OSError.
    """
    _require_valid(entries)
    if not entries:
        return mode, None
    said = {entry.tag: entry.permissions for entry in entries}
    group = said.get(_MASK, said[_GROUP_OBJ])
    mode = mode & ~0o777 | said[_USER_OBJ] << 6 | group << 3 | said[_OTHER]
    return mode, None if len(entries) == len(_SHIFTS) else _encode(entries)


def changed_mode(value: bytes, mode: int) -> bytes:
    """Return an access list, which has a mask, after a chmod(2) of its file to `mode`."""
    shifts = {**_SHIFTS, _GROUP_OBJ: None, _MASK: 3}
    changed = []
    for entry in parse(value):
        shift = shifts.get(entry.tag)
        changed.append(entry if shift is None else entry._replace(permissions=mode >> shift & 7))
    return _encode(changed)


def _require_valid(entries: list[Entry]) -> None:
    if not entries:
        return
    tags = [entry.tag for entry in entries]
    once = all(tags.count(tag) == 1 for tag in _SHIFTS) and tags.count(_MASK) <= 1
    masked = _MASK in tags or not set(tags) & set(_NAMED)
    ordered = tags == sorted(tags, key=_ORDER.index)
    if not (once and masked and ordered and all(entry.permissions <= 7 for entry in entries)):
        raise _error(errno.EINVAL)


def _encode(entries: list[Entry]) -> bytes:
    return _HEADER.pack(_VERSION) + b"".join(
        _ENTRY.pack(tag, permissions, id_ if tag in _NAMED else _NO_ID) for tag, permissions, id_ in entries
    )


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
