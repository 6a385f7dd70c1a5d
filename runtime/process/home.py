"""Sets HOME for a process whose configuration has none, from the container's own /etc/passwd.

containerd's CRI, docker and podman leave it to the runtime.
"""

from __future__ import annotations

import os
import stat

from runtime.light import contextlib, replace
from runtime.spec.values import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_PASSWD: Final = "/etc/passwd"
_MAX_FILE: Final = 8 << 20  # an image can hold a passwd file of any size
_DEFAULT: Final = "/"


def with_home(process: Process) -> Process:
    """Return the process with HOME in its environment, added if missing or empty. Call it inside the process's root."""
    given = next((entry for entry in reversed(process.env) if entry.startswith("HOME=")), "HOME=")
    if given != "HOME=":
        return process
    others = tuple(entry for entry in process.env if not entry.startswith("HOME="))
    home = _DEFAULT
    with contextlib.suppress(OSError):
        home = home_of(process.user.uid, _passwd())
    return replace(process, env=(*others, f"HOME={home}"))


def home_of(uid: int, passwd: bytes) -> str:
    """Return the home of the user's first line in passwd(5); "/" if there is none."""
    number = b"%d" % uid
    for line in passwd.splitlines():
        fields = line.strip().split(b":")
        if len(fields) >= 6 and fields[2] == number:
            return os.fsdecode(fields[5]) if fields[5] and b"\0" not in fields[5] else _DEFAULT
    return _DEFAULT


def _passwd() -> bytes:
    """Read the file if it is a regular one: opening a device may have effects, and a FIFO blocks. Raises OSError."""
    if not stat.S_ISREG(os.stat(_PASSWD).st_mode):
        return b""
    fd = os.open(_PASSWD, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        return file.read(_MAX_FILE) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
