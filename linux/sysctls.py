"""Maps a sysctl's name to its path and to the namespace that it belongs to."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

# The namespaced ones in kernel/ (Documentation/admin-guide/sysctl). All below net/ and fs/mqueue/ are namespaced.
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
    """Return the path below /proc/sys. The first dot or slash in the name says which one separates (sysctl.d(5))."""
    first = next((letter for letter in name if letter in "./"), "/")
    return name if first == "/" else name.translate({ord("."): "/", ord("/"): "."})


def namespace_of(path: str) -> str:
    """Return the type of namespace that the parameter belongs to, "" if it belongs to the whole machine."""
    parts = path.split("/")
    if parts[0] == "net":
        return "network"
    if parts[:2] == ["fs", "mqueue"]:
        return "ipc"
    return _IN_KERNEL.get(parts[1], "") if parts[0] == "kernel" and len(parts) == 2 else ""
