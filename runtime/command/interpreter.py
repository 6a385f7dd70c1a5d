"""The interpreter as a container may see it: not writable (CVE-2019-5736)."""

from __future__ import annotations

import os
import sys

from linux import syscalls
from runtime.errors import failing


def require_readonly(*, needed: bool) -> None:
    """Begin again from a read-only mount of the interpreter's file, unless that is what we run from already.

    It is `needed` where a container's program is executed by the interpreter itself: a program that leads back to its
    caller ("#!/proc/self/exe") must not get at the host's python. An ordinary user cannot write to that anyway.
    """
    if not needed or os.geteuid() != 0 or os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY:
        return
    path = os.readlink("/proc/self/exe")
    with failing("make read-only", path):
        tree = syscalls.open_tree(syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE)
        syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH, attr_set=syscalls.MOUNT_ATTR_RDONLY)
        os.execve(f"/proc/self/fd/{tree}", sys.orig_argv, os.environ)
