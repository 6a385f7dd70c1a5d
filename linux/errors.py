"""Errors for system calls that are missing."""

from __future__ import annotations

_ENOSYS = 38


class MissingCall(OSError):
    """The kernel does not have a system call, or a seccomp filter answers ENOSYS for it."""

    def __init__(self, call: str, since: str) -> None:
        super().__init__(_ENOSYS, f"this kernel lacks {call}(2), which needs Linux {since} or later")


class UnknownCall(MissingCall):
    """crisp does not know the number of a system call on this architecture."""

    def __init__(self, call: str, machine: str) -> None:
        OSError.__init__(self, _ENOSYS, f"the number of {call}(2) on {machine} is not known to crisp")
