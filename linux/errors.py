"""What a kernel may lack."""

from __future__ import annotations

_ENOSYS = 38


class MissingCall(OSError):
    """The kernel has not got a system call, or somebody's filter says so (ENOSYS)."""

    def __init__(self, call: str, since: str) -> None:
        super().__init__(_ENOSYS, f"this kernel lacks {call}(2), which is in Linux {since} and later")


class UnknownCall(MissingCall):
    """crisp does not know the number of a system call on this architecture."""

    def __init__(self, call: str, machine: str) -> None:
        OSError.__init__(self, _ENOSYS, f"{call}(2) is not known on {machine}")
