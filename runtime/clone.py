"""Cloning a process of a container: into its cgroup and PID namespace at birth."""

from __future__ import annotations

import os
from collections.abc import Callable

from runtime import syscalls
from runtime.cgroups import Cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def clone_into(
    cgroup: Cgroup, flags: int, pid_namespace: str, child: Callable[[], Any], *, once: bool = False
) -> tuple[int, int]:
    """Clone `child` into the cgroup (at once where there is a v2 hierarchy) and into an existing PID namespace.

    Only children enter a PID namespace, so the caller's `pid_for_children` is switched for the moment of the clone;
    for good if this is the caller's `once` and only child: root of a user namespace has no way back.
    """
    into = cgroup.clone_fd()
    restore = -1
    try:
        if pid_namespace:
            if not once:
                restore = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            target = os.open(pid_namespace, os.O_RDONLY | os.O_CLOEXEC)
            try:
                syscalls.setns(target, syscalls.CLONE_NEWPID)
            finally:
                os.close(target)
        pid, pidfd = syscalls.clone(flags, into)
        if pid == 0:
            try:
                child()
            finally:
                os._exit(1)  # whatever happens: two processes must not go on as the caller
    finally:
        if restore >= 0:
            syscalls.setns(restore, syscalls.CLONE_NEWPID)
            os.close(restore)
        if into is not None:
            os.close(into)
    return pid, pidfd
