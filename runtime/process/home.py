"""HOME of a process whose configuration has none: that of its user, as the container's own /etc/passwd has it.

Callers leave it to the runtime: containerd's CRI, docker and podman set none of their own.
"""

from __future__ import annotations

import contextlib
import os
import stat

from runtime.light import replace
from runtime.spec.values import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_PASSWD: Final = "/etc/passwd"
_MAX_FILE: Final = 8 << 20  # an image can hold a passwd file of any size
_DEFAULT: Final = "/"


def with_home(process: Process) -> Process:
    """The process with HOME in its environment, where that is absent or empty. For those who are in its root."""
    given = next((entry for entry in reversed(process.env) if entry.startswith("HOME=")), "HOME=")
    if given != "HOME=":
        return process
    others = tuple(entry for entry in process.env if not entry.startswith("HOME="))
    home = _DEFAULT
    with contextlib.suppress(OSError):
        home = home_of(process.user.uid, _passwd())
    return replace(process, env=(*others, f"HOME={home}"))


def home_of(uid: int, passwd: bytes) -> str:
    """The sixth field of the user's first line in passwd(5); "/" where there is none."""
    number = b"%d" % uid
    for line in passwd.splitlines():
        fields = line.strip().split(b":")
        if len(fields) >= 6 and fields[2] == number:
            return os.fsdecode(fields[5]) if fields[5] and b"\0" not in fields[5] else _DEFAULT
    return _DEFAULT


def _passwd() -> bytes:
    """Its content if it is a file: opening a device can do anything, a FIFO's waits for a writer. Raises OSError."""
    if not stat.S_ISREG(os.stat(_PASSWD).st_mode):
        return b""
    fd = os.open(_PASSWD, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        return file.read(_MAX_FILE) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
