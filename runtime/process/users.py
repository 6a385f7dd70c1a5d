"""Looks up the user of a container's process in the container's own /etc/passwd and /etc/group, never the host's.

The rules are those of the OCI image specification's `User` ("name", "uid", "name:group", "uid:gid") and of CRI's
LinuxContainerSecurityContext. A number is always an id, never a name: an image may have a user named 1000 whose id is 0
(CVE-2016-3697), and Kubernetes decides by the number whether a container runs as root.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from linux.tables import HIGHEST_ID
from runtime.errors import RuntimeCoreError
from runtime.rootfs.foreign import TooLarge, read_foreign
from runtime.wire.calls import Identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MAX_FILE: Final = 8 << 20  # an image can hold a passwd file of any size
_ID_DIGITS: Final = 10
_NUMBER: Final = re.compile(r"[+-]?[0-9]+")


class UserNotFound(RuntimeCoreError):
    """The image does not have the user or group."""


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    uid: int
    gid: int
    home: str


def resolve(root: int, user: str, group: int | None, supplemental: Sequence[int], *, merge: bool) -> Identity:
    """Return the identity of `user` ("" is root) inside the rootfs open at `root`.

    `group` overrides the primary group; `merge` adds the user's groups in /etc/group. Raises UserNotFound.
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
    return _id(entry[2]) is not None and name in entry[3].split(",")


def _account(root: int, name: str) -> _Account:
    wanted = name or "0"
    number = _numeric(wanted)
    for entry in _entries(root, "/etc/passwd", 6):
        uid, gid = _id(entry[2]), _id(entry[3])
        if uid is None or gid is None:
            continue
        if entry[0] == wanted if number is None else uid == number:
            return _Account(entry[0], uid, gid, entry[5])
    if number is None:
        raise UserNotFound(f"look up user `{name}`: the image's /etc/passwd has no such user")
    return _Account("", number, 0, "/root" if number == 0 else "/")


def _group_id(root: int, name: str) -> int:
    number = _numeric(name)
    if number is not None:
        return number
    for entry in _entries(root, "/etc/group", 4):
        gid = _id(entry[2])
        if entry[0] == name and gid is not None:
            return gid
    raise UserNotFound(f"look up group `{name}`: the image's /etc/group has no such group")


def _numeric(text: str) -> int | None:
    """Return the id if `text` is a number, None for a name. Raises UserNotFound for a number out of range."""
    if _NUMBER.fullmatch(text) is None:
        return None
    found = _id(text.removeprefix("+"))
    if found is None:
        raise UserNotFound(f"look up user or group `{text[:32]}`: not between 0 and {HIGHEST_ID}")
    return found


def _id(text: str) -> int | None:
    """Parse an id; None if Linux has no such id."""
    if not (text.isascii() and text.isdigit()):
        return None
    digits = text.lstrip("0") or "0"
    return int(digits) if len(digits) <= _ID_DIGITS and int(digits) <= HIGHEST_ID else None


def _entries(root: int, path: str, fields: int) -> Iterator[list[str]]:
    """Yield the file's well-formed lines, split at colons; nothing if there is no such regular file."""
    try:
        text = read_foreign(root, path, _MAX_FILE)
    except TooLarge as error:
        raise UserNotFound(str(error)) from error
    for line in text.decode(errors="surrogateescape").splitlines():
        entry = line.strip().split(":")
        if len(entry) >= fields:
            yield entry
