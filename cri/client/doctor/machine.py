"""The machine as the checks see it, and their findings."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from linux import clock

_CONNECT_SECONDS = 3.0


class Level(StrEnum):
    """OK; WARNING: it works, but slowly or not fully; WRONG: pods will not run."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """A check's result, and unless it is OK the command or line of configuration that fixes it."""

    level: Level
    subject: str
    message: str
    remedy: str = ""


Check = Callable[["Machine"], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Disk:
    """Free space of a file system, as fractions, and its type as in mount(8)."""

    kind: str
    free_bytes: float
    free_inodes: float


class Machine:
    """The only access of the checks to the kernel. `root` stands for /."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def path(self, path: str | Path) -> Path:
        """Return the real path of a path of that machine."""
        return self._root / str(path).lstrip("/")

    def text(self, path: str | Path) -> str:
        """Return a file's text without surrounding white space; "" if it cannot be read."""
        try:
            return self.path(path).read_text(errors="replace").strip()
        except OSError:
            return ""

    def exists(self, path: str | Path) -> bool:
        return self.path(path).exists()

    def release(self) -> tuple[int, int]:
        """Return the kernel's version."""
        major, minor = os.uname().release.split(".")[:2]
        return int(major), int("".join(filter(str.isdigit, minor)) or 0)

    def program(self, name: str) -> str:
        """Return a program's path, also from the sbin directories that are not in users' PATH; "" if it is missing."""
        return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin") or ""

    def disk(self, path: Path) -> Disk:
        """Return the file system of `path`, or of its nearest existing parent."""
        place = next(place for place in (path, *path.parents) if self.exists(place))
        room = os.statvfs(self.path(place))
        return Disk(
            kind=self._kind(place),
            free_bytes=room.f_bavail / (room.f_blocks or 1),
            free_inodes=room.f_favail / room.f_files if room.f_files else 1.0,  # btrfs counts none
        )

    def _kind(self, place: Path) -> str:
        device = self.path(place).stat().st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        for line in self.text("/proc/self/mountinfo").splitlines():
            words = line.split(" ")
            if words[2] == number:
                return words[words.index("-") + 1]
        return ""

    def clock_is_kept(self) -> bool | None:
        """Return whether the kernel considers its clock synchronised; None if it cannot be asked."""
        try:
            return clock.is_synchronised()
        except OSError as error:
            return None if error.errno in (errno.EPERM, errno.ENOSYS) else False

    def now(self) -> float:
        """Return the seconds since the epoch."""
        return time.time()

    def reach(self, host: str) -> str:
        """Return why `host[:port]` (default 443) accepts no connection; "" if it does."""
        name, _, port = host.rpartition(":") if ":" in host else (host, "", "443")
        try:
            with socket.create_connection((name.strip("[]"), int(port)), _CONNECT_SECONDS):
                return ""
        except OSError as error:
            return error.strerror or str(error)
