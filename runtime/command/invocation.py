"""Holds what one invocation of crisp-oci works with: global flags, operands, user, interpreter."""

from __future__ import annotations

import os
import sys

from linux import syscalls
from linux.user_namespaces import in_user_namespace
from runtime.cgroups import Hierarchies
from runtime.command.flags import UsageError
from runtime.command.log import Log
from runtime.command.store import Store
from runtime.errors import failing
from runtime.light import dataclass


@dataclass(frozen=True, slots=True)
class Context:
    """The values of the global flags.

    `own_root`: the caller gave --root. `rootless`: continue without cgroups if they may not be used.
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
    """Return the only operand. Raises UsageError."""
    if len(operands) != 1:
        raise UsageError(f"expected exactly one argument, {name}, got {len(operands)}")
    return operands[0]


def first(operands: list[str], name: str) -> tuple[str, list[str]]:
    """Return the first operand and the others. Raises UsageError."""
    if not operands:
        raise UsageError(f"expected {name}")
    return operands[0], operands[1:]


def default_root() -> str:
    """Return where containers are kept: /run/crisp-oci, for an ordinary user $XDG_RUNTIME_DIR/crisp-oci."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # Root in a user namespace is the user who created it, or (with USER=root) the root of an outer container.
    inside = os.environ.get("USER") != "root" and in_user_namespace()
    if runtime and (os.geteuid() != 0 or inside):
        return os.path.join(runtime, "crisp-oci")
    return "/run/crisp-oci"


def owner_name() -> str:
    """Return the name of the user who runs crisp-oci, or the number if it has no name."""
    if os.geteuid() == 0:
        return "root"
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def require_readonly_interpreter(*, needed: bool) -> None:
    """Execute ourselves again from a read-only mount of the interpreter's file, unless we run from one already.

    Needed (`needed`) if the interpreter itself executes the container's program: a program that leads back to its
    caller ("#!/proc/self/exe") must not be able to write to the host's Python (CVE-2019-5736). An ordinary user cannot
    write to it anyway.
    """
    if not needed or os.geteuid() != 0 or os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY:
        return
    path = os.readlink("/proc/self/exe")
    with failing("make read-only", path):
        tree = syscalls.open_tree(syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE)
        syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH, attr_set=syscalls.MOUNT_ATTR_RDONLY)
        os.execve(f"/proc/self/fd/{tree}", sys.orig_argv, os.environ)
