"""Who a container's process runs as, looked up in the container's own /etc/passwd and /etc/group, never the host's.

The rules are those of the OCI image specification's `User` ("name", "uid", "name:group", "uid:gid") and of CRI's
LinuxContainerSecurityContext.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from runtime.errors import RuntimeCoreError, failing
from runtime.rootfs import open_in_root

_MAX_FILE: Final = 8 << 20  # an image can hold a passwd file of any size
_MAX_ID: Final = 2**32 - 2


class UserNotFound(RuntimeCoreError):
    """The image has no such user or group."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Numeric identity; `additional_gids` starts with the primary group, as CRI reports it."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    uid: int
    gid: int
    home: str


def resolve(root: int, user: str, group: int | None, supplemental: Sequence[int], *, merge: bool) -> Identity:
    """The identity that `user` ("" is root) means inside the rootfs open at `root`.

    `group` overrides the primary group; `merge` adds the groups that /etc/group gives the user. Raises UserNotFound.
    """
    name, _, group_name = user.partition(":")
    account = _account(root, name)
    gid = account.gid
    if group is not None:
        gid = group
    elif group_name:
        gid = _group_id(root, group_name)
    gids = [gid, *supplemental]
    if merge and account.name:
        gids += [int(entry[2]) for entry in _entries(root, "/etc/group", 4) if _is_member(account.name, entry)]
    return Identity(account.uid, gid, tuple(dict.fromkeys(gids)), account.home or "/")


def _is_member(name: str, entry: list[str]) -> bool:
    return entry[2].isdigit() and name in entry[3].split(",")


def _account(root: int, name: str) -> _Account:
    wanted = name or "0"
    uid = _numeric(wanted)
    for entry in _entries(root, "/etc/passwd", 6):
        if not (entry[2].isdigit() and entry[3].isdigit()):
            continue
        if entry[0] == wanted or (uid is not None and int(entry[2]) == uid):
            return _Account(entry[0], int(entry[2]), int(entry[3]), entry[5])
    if uid is None:
        raise UserNotFound(f"look up user `{name}`: the image's /etc/passwd has no such user")
    return _Account("", uid, 0, "/root" if uid == 0 else "/")


def _group_id(root: int, name: str) -> int:
    gid = _numeric(name)
    if gid is not None:
        return gid
    for entry in _entries(root, "/etc/group", 4):
        if entry[0] == name and entry[2].isdigit():
            return int(entry[2])
    raise UserNotFound(f"look up group `{name}`: the image's /etc/group has no such group")


def _numeric(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()):
        return None
    if int(text) > _MAX_ID:
        raise UserNotFound(f"look up user or group `{text}`: larger than {_MAX_ID}")
    return int(text)


def _entries(root: int, path: str, fields: int) -> Iterator[list[str]]:
    """The file's well-formed lines, split at colons; nothing when the image lacks the file."""
    try:
        fd = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return
        with failing("read", path):
            raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return
    with open(fd, "rb") as file, failing("read", path):
        text = file.read(_MAX_FILE + 1)
    if len(text) > _MAX_FILE:
        raise UserNotFound(f"read `{path}`: larger than {_MAX_FILE} bytes")
    for line in text.decode(errors="surrogateescape").splitlines():
        entry = line.strip().split(":")
        if len(entry) >= fields:
            yield entry
