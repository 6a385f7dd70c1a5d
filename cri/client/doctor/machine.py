"""The machine as the checks see it, and what they find."""

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
    """OK; WARNING: works, but not as well or not everything; WRONG: pods will not run."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and where that is not OK the command or line of configuration that mends it."""

    level: Level
    subject: str
    message: str
    remedy: str = ""


Check = Callable[["Machine"], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Disk:
    """Room of a file system, in parts of one, and its kind as mount(8) names it."""

    kind: str
    free_bytes: float
    free_inodes: float


class Machine:
    """The one seam between the checks and the kernel. `root` is in the place of /."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def path(self, path: str | Path) -> Path:
        """Where a path of that machine is."""
        return self._root / str(path).lstrip("/")

    def text(self, path: str | Path) -> str:
        """A file's text without white space around it; "" when it cannot be read."""
        try:
            return self.path(path).read_text(errors="replace").strip()
        except OSError:
            return ""

    def exists(self, path: str | Path) -> bool:
        return self.path(path).exists()

    def release(self) -> tuple[int, int]:
        """The kernel's version."""
        major, minor = os.uname().release.split(".")[:2]
        return int(major), int("".join(filter(str.isdigit, minor)) or 0)

    def program(self, name: str) -> str:
        """A program's path, also in the sbin directories that users do not have in PATH; "" when there is none."""
        return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin") or ""

    def disk(self, path: Path) -> Disk:
        """The file system that holds `path`, or will when it is made."""
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
        """Does the kernel say that something keeps its clock right? None where it does not tell."""
        try:
            return clock.is_synchronised()
        except OSError as error:
            return None if error.errno in (errno.EPERM, errno.ENOSYS) else False

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def reach(self, host: str) -> str:
        """Why `host[:port]` (443 without one) accepts no connection; "" when it does."""
        name, _, port = host.rpartition(":") if ":" in host else (host, "", "443")
        try:
            with socket.create_connection((name.strip("[]"), int(port)), _CONNECT_SECONDS):
                return ""
        except OSError as error:
            return error.strerror or str(error)
