"""Reads how a process ended that is not the caller's child (ioctl_pidfd(2), PIDFD_GET_INFO; Linux 6.15)."""

from __future__ import annotations

import fcntl
import os
import struct
from functools import cache

from linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_INFO: Final = struct.Struct("=QQ11Ii")  # struct pidfd_info: mask, cgroupid, ids, exit_code
_GET_INFO: Final = 0xC000FF0B | _INFO.size << 16
_EXIT: Final = 1 << 3


@cache
def tells_everybody() -> bool:
    """Whether this kernel tells the exit status of a process that was reaped to others than its parent."""
    pid, pidfd = syscalls.clone()
    if pid == 0:
        os._exit(0)
    try:
        os.waitpid(pid, 0)
        return exit_status(pidfd) is not None
    finally:
        os.close(pidfd)


def exit_status(pidfd: int) -> int | None:
    """Return the exit code, or minus the signal, of a process that somebody has reaped.

    None as long as nobody has, and before Linux 6.15, which tell it to the parent alone.
    """
    asked = bytearray(_INFO.pack(_EXIT, *(0,) * 13))
    try:
        fcntl.ioctl(pidfd, _GET_INFO, asked)
    except OSError:
        return None
    mask, *_others, status = _INFO.unpack(asked)
    return os.waitstatus_to_exitcode(status) if mask & _EXIT else None
