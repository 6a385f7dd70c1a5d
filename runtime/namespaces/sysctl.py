"""Kernel parameters (sysctl) of a container's namespaces: their names, whose they are, and writing them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from runtime.errors import OperationFailed, failing

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


def write_sysctls(sysctls: Mapping[str, str]) -> None:
    """Write parameters of the caller's namespaces. Raises OperationFailed."""
    for name, value in sysctls.items():
        with failing("set sysctl", f"{name}={value}"), open(f"/proc/sys/{path_of(name)}", "w") as file:
            file.write(value)


def write_defaults(sysctls: Mapping[str, str]) -> None:
    """The same for what nobody asked for by name: a kernel that lacks one, or refuses it, does without."""
    for name, value in sysctls.items():
        with suppress(OperationFailed):
            write_sysctls({name: value})
