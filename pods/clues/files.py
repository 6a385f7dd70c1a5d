"""Tells the owner and mode of the file or directory that a program was not let into, and what is full.

The container's mounts are gone with it. Its root is put together here from its layers and volumes, by looking: step by
step, links followed by hand, so that nothing leads out of them.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from linux.tables import OVERLAY_OPAQUE, SELINUX_LABEL
from pods import disk_quotas

ON_NODE: Final = "on the node it is"
DENIED: Final = re.compile(r"(?i)permission denied|EACCES")
FULL: Final = re.compile(r"(?i)no space left on device|disk quota exceeded|ENOSPC|EDQUOT")
_PATH: Final = re.compile(r"(?:^|(?<=[\s'\"`(=:\[]))/[^\s'\"`:,;()\[\]\x00-\x1f]+")  # control codes: of colours, too
_ALMOST: Final = 64 << 10  # bytes
_LINKS: Final = 40
_COMPONENTS: Final = 256
_LARGE: Final = 1 << 30
_DESCRIPTORS: Final = 1024  # an image chooses how many layers have each directory on a way, and a container the way
_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ, _WRITE, _ENTER = 4, 2, 1
_RUN: Final = _ENTER
_ABOVE_MODES: Final = frozenset(("CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"))


@dataclass(frozen=True, slots=True)
class User:
    """Who the container's first process runs as."""

    uid: int
    groups: tuple[int, ...]  # the first is its own, the others are additional
    is_above_modes: bool  # by its capabilities

    def lacks(self, status: os.stat_result, rights: int) -> bool:
        """Return whether the file's mode denies this user one of `rights`."""
        if self.is_above_modes:
            return bool(rights & _RUN) and not status.st_mode & 0o111
        shift = 6 if self.uid == status.st_uid else 3 if status.st_gid in self.groups else 0
        return bool(rights & ~(status.st_mode >> shift))

    def __str__(self) -> str:
        more = f" and groups {', '.join(map(str, self.groups[1:]))}" if self.groups[1:] else ""
        return f"{self.uid}:{self.groups[0]}{more}"


def denied(words: str, document: dict[str, Any], root: Sequence[Path], *, runs: bool = False) -> str:
    """Say what the path in the last words belongs to, and who was denied; "" if owner and mode do not explain it.

    `document` is config.json. `root` are the directories of the container's root, the topmost first. `runs`: it was to
    be run as a program.
    """
    lines = [line for line in words.split("\n") if DENIED.search(line)]
    paths = _PATH.findall(lines[-1]) if lines else []
    if not paths or any(one.get("type") == "user" for one in document.get("linux", {}).get("namespaces", ())):
        return ""  # ids of a user namespace are others than those on the disk
    user = _user(document.get("process", {}))
    with ExitStack() as undo:
        found = _Root(root, document.get("mounts", ()), undo, owners=True).walk(os.path.normpath(paths[-1]))
        return next(filter(None, (_explained(one, user, runs=runs) for one in found)), "")


def foreign(words: str, document: dict[str, Any], root: Sequence[Path]) -> str:
    """Say which file or directory of a volume, on the way to the path in the last words, is not for the container.

    "" if there is none: policies allow other labels, too, and do not report all that they deny.
    """
    own = document.get("linux", {}).get("mountLabel", "")
    lines = [line for line in words.split("\n") if DENIED.search(line)]
    paths = _PATH.findall(lines[-1]) if lines and own else []
    with ExitStack() as undo, suppress(OSError):  # crispd may be denied to look further, too
        there = _Root(root, document.get("mounts", ()), undo, owners=False)
        for one in there.walk(os.path.normpath(paths[-1])) if paths else ():
            label = _label(one.descriptor) if there.mount_of(one.path) else ""
            if label and not _is_for(label, own):
                volume = f" ({ON_NODE} `{one.source}`)" if one.source else ""
                return f"`{one.path}`{volume} is labelled {label}, and the container's own files {own}"
    return ""


def _label(descriptor: int) -> str:
    return os.getxattr(f"/proc/self/fd/{descriptor}", SELINUX_LABEL).rstrip(b"\0").decode(errors="replace")


def _is_for(label: str, own: str) -> bool:
    """Whether files of these two labels have one type, and the first no category that the second lacks."""
    (_user, _role, kind, level), (_own_user, _own_role, own_kind, own_level) = (
        one.split(":", 3) for one in (label, own)
    )
    return kind == own_kind and _categories(level) <= _categories(own_level)


def _categories(level: str) -> set[str]:
    """Of a level such as "s0:c1,c2"."""
    return set(filter(None, level.partition(":")[2].split(",")))


def full(words: str, document: dict[str, Any], root: Sequence[Path]) -> str:
    """Say how large the file system of the path in the last words is, and how much of it is free; "" without a path."""
    lines = [line for line in words.split("\n") if FULL.search(line)]
    paths = _PATH.findall(lines[-1]) if lines else []
    if not paths:
        return ""
    with ExitStack() as undo:
        there = _Root(root, document.get("mounts", ()), undo, owners=False)
        path = os.path.normpath(paths[-1])
        *_above, last = there.walk(path, there.mount_of(path))
        place = there.mount_of(last.path) or "/"
        system = os.fstatvfs(last.descriptor if place != "/" else there.top)
    if place == "/" and (limit := _limit_of(root[0].parent)):
        return f"the container's own files may take {limit >> 10} KiB (container_disk_limit, or its pod's annotation)"
    if system.f_files and not system.f_favail:
        return f"the file system of `{place}` has {system.f_files} inodes, of which none is free"
    size, free = system.f_blocks * system.f_frsize, system.f_bavail * system.f_frsize
    unit, bits = ("MiB", 20) if size >= _LARGE else ("KiB", 10)
    return f"the file system of `{place}` has {size >> bits} {unit}, of which {free >> bits} are free"


def _limit_of(directory: Path) -> int:
    """Return the quota of a container's directory, if it is used up but for a page or two; else 0."""
    use = disk_quotas.use(directory)
    return use.limit if use is not None and use.bytes + _ALMOST >= use.limit else 0


def has_file(root: Sequence[Path], path: str) -> bool:
    """Return whether the root of these layers, topmost first, has the file. Raises OSError."""
    with ExitStack() as undo:
        return any(found.last for found in _Root(root, (), undo, owners=False).walk(os.path.normpath(path)))


def _user(process: dict[str, Any]) -> User:
    user = process.get("user", {})
    gid = user.get("gid", 0)
    more = tuple(one for one in user.get("additionalGids", ()) if one != gid)
    uid = user.get("uid", 0)
    # What is not ambient is lost where another user than root executes the program (capabilities(7)).
    capabilities = process.get("capabilities", {}).get("ambient" if uid else "effective", ())
    return User(uid, (gid, *more), bool(_ABOVE_MODES.intersection(capabilities)))


@dataclass(frozen=True, slots=True)
class _Found:
    path: str
    descriptor: int
    status: os.stat_result
    last: bool  # it is what was looked for
    makes: bool = False  # what was looked for is to be made in it
    source: str = ""  # of the volume that it is the root of


def _explained(one: _Found, user: User, *, runs: bool) -> str:
    """Say so if this is what denies the user."""
    if not one.last:
        rights = _ENTER | (_WRITE if one.makes else 0)
    elif stat.S_ISDIR(one.status.st_mode):
        rights = _READ | _WRITE | _ENTER
    else:
        rights = _RUN if runs else _READ | _WRITE
    if not user.lacks(one.status, rights):
        return ""
    owner, mode = f"{one.status.st_uid}:{one.status.st_gid}", stat.S_IMODE(one.status.st_mode)
    volume = f" ({ON_NODE} `{one.source}`)" if one.source else ""
    return f"`{one.path}`{volume} belongs to {owner} and has mode {mode:04o}; the container runs as {user}"


class _Root:
    """A container's root directory, as far as it is known. `owners`: as far as the owners of its files are, too."""

    def __init__(
        self, root: Sequence[Path], mounts: Iterable[dict[str, Any]], undo: ExitStack, *, owners: bool
    ) -> None:
        self._undo = undo
        self._opened = 0
        self._owners = owners
        self._root = [self._open(os.fspath(path), follow=True) for path in root]
        self._mounts = {os.path.normpath(mount["destination"]): mount for mount in mounts}

    @property
    def top(self) -> int:
        """The container's own layer."""
        return self._root[0]

    def mount_of(self, path: str) -> str:
        """Return where the mount is that a path without links is in; "" if it is in none."""
        return max((one for one in self._mounts if f"{path}/".startswith(f"{one}/")), key=len, default="")

    def walk(self, path: str, begin: str = "") -> Iterator[_Found]:
        """Yield the directories on the way, and the file if it is there. Raises OSError, among others for a loop.

        `begin`: a mount on the way, where it begins; what is above that may be unknown.
        """
        todo = path.removeprefix(begin).strip("/").split("/")[::-1]
        first = self._below(begin, "", ()) if begin else self._root
        way: list[tuple[str, list[int]]] = [(begin, first)]
        links = 0
        yield self._found(way[0], last=False)
        for _step in range(_COMPONENTS):
            name = todo.pop() if todo else ""
            if name == "..":
                if way[-1][0] and way[-1][0] == begin:
                    raise FileNotFoundError(errno.ENOENT, "the way leads above where it begins", path)
                way = way[:-1] or way
                continue
            if name in ("", "."):
                if not todo:
                    return
                continue
            place = f"{way[-1][0]}/{name}"
            directories = self._below(place, name, way[-1][1])
            if not directories:
                if not todo:
                    yield self._found(way[-1], last=False, makes=True)
                return
            found = self._found((place, directories), last=not todo)
            if stat.S_ISLNK(found.status.st_mode):
                links += 1
                target = os.readlink("", dir_fd=directories[0])
                if links > _LINKS:
                    return
                if target.startswith("/"):
                    begin, way = "", [("", self._root)]
                todo += target.strip("/").split("/")[::-1]
                continue
            yield found
            if not stat.S_ISDIR(found.status.st_mode):
                return
            way.append((place, directories))

    def _found(self, there: tuple[str, list[int]], *, last: bool, makes: bool = False) -> _Found:
        place, (descriptor, *_merged) = there
        return _Found(place or "/", descriptor, os.fstat(descriptor), last, makes, self._source(place))

    def _source(self, place: str) -> str:
        return str(self._mounts.get(place, {}).get("source", ""))

    def _below(self, place: str, name: str, directories: Sequence[int]) -> list[int]:
        """Return what is at a place: a file, or the directories that are merged there, the topmost first."""
        if (mount := self._mounts.get(place)) is not None:
            if mount.get("type") != "bind" or (self._owners and "uidMappings" in mount):
                raise FileNotFoundError(errno.ENOENT, "file system that cannot be looked at from here", place)
            return [self._open(mount["source"], follow=False)]
        found: list[int] = []
        for directory in directories:
            try:
                opened = self._open(name, directory)
            except FileNotFoundError:
                continue
            status = os.fstat(opened)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                break  # it was removed
            if found and not stat.S_ISDIR(status.st_mode):
                break
            found.append(opened)
            if not stat.S_ISDIR(status.st_mode) or _is_opaque(opened):
                break
        return found

    def _open(self, path: str, directory: int | None = None, *, follow: bool = False) -> int:
        if self._opened == _DESCRIPTORS:
            raise OSError(errno.EMFILE, "too many directories on the way", path)
        opened = os.open(path, _LOOK & ~os.O_NOFOLLOW if follow else _LOOK, dir_fd=directory)
        self._opened += 1
        self._undo.callback(os.close, opened)
        return opened


def _is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(f"/proc/self/fd/{directory}", OVERLAY_OPAQUE) == b"y"
    except OSError:
        return False
