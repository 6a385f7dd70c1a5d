"""Clones a container's process into its cgroup and, if needed, a new time namespace."""

from __future__ import annotations

import os

from linux import syscalls
from runtime.cgroups import Cgroup
from runtime.errors import NotSupported, failing
from runtime.process.parent import die_with, own_pidfd
from runtime.spec.values import TimeOffset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


def clone_into(
    cgroup: Cgroup,
    flags: int,
    child: Callable[[], Any],
    *,
    clocks: Mapping[str, TimeOffset] | None = None,
    once: bool = False,
) -> tuple[int, int]:
    """Clone `child` into the cgroup (by the clone itself if there is a v2 hierarchy). It dies with the caller.

    `clocks` asks for a new time namespace with these offsets. Only children enter it, so the caller's
    `time_for_children` is changed during the clone. With `once`, for a caller's only child, it is not changed back:
    root of a user namespace may not do that. For a PID namespace with other processes see `runtime.process.bear`.
    """
    into = cgroup.clone_fd()
    restore = {}
    try:
        if clocks is not None:
            if not os.path.exists("/proc/self/ns/time"):
                raise NotSupported("make namespace", "time", "needs Linux 5.6 or later with CONFIG_TIME_NS")
            if not once:
                restore[syscalls.CLONE_NEWTIME] = _open("/proc/self/ns/time")
            _new_time_namespace(clocks)
        with own_pidfd() as caller:
            pid, pidfd = syscalls.clone(flags, into)
            if pid == 0:
                try:
                    die_with(caller)
                    child()
                finally:
                    os._exit(1)  # always: the child must never return into the caller's code
    finally:
        for kind, home in restore.items():
            syscalls.setns(home, kind)
            os.close(home)
        if into is not None:
            os.close(into)
    return pid, pidfd


def _open(namespace: str) -> int:
    return os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)


def _new_time_namespace(clocks: Mapping[str, TimeOffset]) -> None:
    """Create a time namespace for the caller's next children (time_namespaces(7)). Set offsets while it is empty."""
    with failing("make", "time namespace"):
        syscalls.unshare(syscalls.CLONE_NEWTIME)
    lines = [f"{clock} {offset.secs} {offset.nanosecs}" for clock, offset in clocks.items()]
    if lines:
        with failing("set timeOffsets", ", ".join(lines)), open("/proc/self/timens_offsets", "w") as file:
            file.write("\n".join(lines))
