"""Kernel parameters (sysctl): which path a name means, and whose namespace each belongs to."""

from __future__ import annotations

from collections.abc import Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# Those in kernel/ that are a namespace's own (Documentation/admin-guide/sysctl); below net/ and fs/mqueue/ all are.
_IN_KERNEL: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            "msgmax", "msgmnb", "msgmni", "msg_next_id", "sem", "sem_next_id", "shmall", "shmmax", "shmmni",
            "shm_next_id", "shm_rmid_forced", "auto_msgmni",
        ),
        "ipc",
    ),
    "domainname": "uts",
    "hostname": "uts",
}  # fmt: skip


def path_of(name: str) -> str:
    """The path below /proc/sys: of dots and slashes, the one that comes first separates (sysctl.d(5))."""
    first = next((letter for letter in name if letter in "./"), "/")
    return name if first == "/" else name.translate({ord("."): "/", ord("/"): "."})


def namespace_of(path: str) -> str:
    """The type of namespace that the parameter belongs to, "" for one of the whole machine."""
    parts = path.split("/")
    if parts[0] == "net":
        return "network"
    if parts[:2] == ["fs", "mqueue"]:
        return "ipc"
    return _IN_KERNEL.get(parts[1], "") if parts[0] == "kernel" and len(parts) == 2 else ""
