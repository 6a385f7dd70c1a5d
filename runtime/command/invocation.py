"""One invocation of crisp-oci: what its global flags say, its operands, who runs it, and by which interpreter."""

from __future__ import annotations

import os
import sys

from linux import syscalls
from runtime.cgroups import Hierarchies
from runtime.command.flags import UsageError
from runtime.command.log import Log
from runtime.command.store import Store
from runtime.errors import failing
from runtime.light import dataclass


@dataclass(frozen=True, slots=True)
class Context:
    """What the global flags say, for every command.

    `own_root`: the caller chose where containers are kept. `rootless`: does without cgroups that may not be used.
    """

    store: Store
    own_root: bool
    log: Log
    rootless: bool
    systemd_cgroup: bool

    def hierarchies(self) -> Hierarchies:
        """The machine's cgroup hierarchies."""
        return Hierarchies.detect()


def only(operands: list[str], name: str) -> str:
    """The single one of the arguments that are no flags. Raises UsageError."""
    if len(operands) != 1:
        raise UsageError(f"expected exactly one argument, {name}, got {len(operands)}")
    return operands[0]


def first(operands: list[str], name: str) -> tuple[str, list[str]]:
    """The first one of them and the others. Raises UsageError."""
    if not operands:
        raise UsageError(f"expected {name}")
    return operands[0], operands[1:]


def in_user_namespace() -> bool:
    """Whether we are in a user namespace of less than the machine: its root makes no device and may mount little."""
    with open("/proc/self/uid_map", "rb") as file:
        return file.read().split() != [b"0", b"0", b"4294967295"]


def default_root() -> str:
    """Where containers are kept: /run/crisp-oci, or the same below $XDG_RUNTIME_DIR for an ordinary user."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # Root of a user namespace is who the user made it for, or (with USER=root) a nested container's root.
    inside = os.environ.get("USER") != "root" and in_user_namespace()
    if runtime and (os.geteuid() != 0 or inside):
        return os.path.join(runtime, "crisp-oci")
    return "/run/crisp-oci"


def owner_name() -> str:
    """The name of the user who runs it, the number where it has none."""
    if os.geteuid() == 0:
        return "root"
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def require_readonly_interpreter(*, needed: bool) -> None:
    """Begin again from a read-only mount of the interpreter's file, unless that is what we run from already.

    It is `needed` where a container's program is executed by the interpreter itself: a program that leads back to its
    caller ("#!/proc/self/exe") must not get at the host's python (CVE-2019-5736). An ordinary user cannot write to that
    anyway.
    """
    if not needed or os.geteuid() != 0 or os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY:
        return
    path = os.readlink("/proc/self/exe")
    with failing("make read-only", path):
        tree = syscalls.open_tree(syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE)
        syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH, attr_set=syscalls.MOUNT_ATTR_RDONLY)
        os.execve(f"/proc/self/fd/{tree}", sys.orig_argv, os.environ)
