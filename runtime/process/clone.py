"""Cloning a process of a container: into its cgroup and a new time namespace at birth."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from linux import syscalls
from runtime.cgroups import Cgroup
from runtime.errors import NotSupported, failing
from runtime.spec.values import TimeOffset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def clone_into(
    cgroup: Cgroup,
    flags: int,
    child: Callable[[], Any],
    *,
    clocks: Mapping[str, TimeOffset] | None = None,
    once: bool = False,
) -> tuple[int, int]:
    """Clone `child` into the cgroup (at once where there is a v2 hierarchy).

    `clocks` asks for a new time namespace in which they are offset so. Only children enter a new time namespace, so the
    caller's `time_for_children` is switched for the moment of the clone; for good if this is the caller's `once` and
    only child: root of a user namespace has no way back. Into a PID namespace that others are in goes the child's own
    child (`runtime.process.bear`).
    """
    into = cgroup.clone_fd()
    restore = {}
    try:
        if clocks is not None:
            if not os.path.exists("/proc/self/ns/time"):
                raise NotSupported("make namespace", "time", "Linux 5.6 with CONFIG_TIME_NS is needed")
            if not once:
                restore[syscalls.CLONE_NEWTIME] = _open("/proc/self/ns/time")
            _new_time_namespace(clocks)
        pid, pidfd = syscalls.clone(flags, into)
        if pid == 0:
            try:
                child()
            finally:
                os._exit(1)  # whatever happens: two processes must not go on as the caller
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
    """For the caller's next children (time_namespaces(7)): offsets can be set as long as nobody is in it."""
    with failing("make", "time namespace"):
        syscalls.unshare(syscalls.CLONE_NEWTIME)
    lines = [f"{clock} {offset.secs} {offset.nanosecs}" for clock, offset in clocks.items()]
    if lines:
        with failing("set timeOffsets", ", ".join(lines)), open("/proc/self/timens_offsets", "w") as file:
            file.write("\n".join(lines))
