"""Runs an ordinary user's container: crisp-oci enters the container's user namespace first and is root there.

Everything after that is as for root. newuidmap(1) and newgidmap(1) map the ids, unless only the caller's own user and
group are mapped.
"""

from __future__ import annotations

import os

from linux import syscalls
from runtime.errors import NotSupported, RuntimeCoreError, SpecError, failing
from runtime.light import contextlib, replace
from runtime.namespaces.user import IDMappings
from runtime.spec.values import IDMapping, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


def enter_new(spec: Spec) -> Spec:
    """Unshare the configuration's user namespace and a mount namespace owned by it, and become root in it.

    Returns the configuration without its user namespace. Raises RuntimeCoreError. For single-threaded ordinary users.
    """
    namespace = spec.linux.namespace("user")
    if namespace is None:
        raise SpecError("linux.namespaces", "an ordinary user's container needs a user namespace; add one")
    if namespace.path:
        raise NotSupported("join user namespace", namespace.path, "an ordinary user's container needs a new one")
    mappings = IDMappings(spec.linux.uid_mappings, spec.linux.gid_mappings)
    for name, lines in (("uidMappings", mappings.uids), ("gidMappings", mappings.gids)):
        if not any(line.container_id == 0 for line in lines):
            raise SpecError(f"linux.{name}", "the container's id 0 must be mapped")
    if _is_own(mappings):
        with failing("unshare", "user namespace"):
            syscalls.unshare(syscalls.CLONE_NEWUSER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"0 {mappings.uids[0].host_id} 1")
        _write("/proc/self/gid_map", f"0 {mappings.gids[0].host_id} 1")
    else:
        _unshare_mapped(mappings)
    _become_root()
    with failing("unshare", "mount namespace"):
        syscalls.unshare(syscalls.CLONE_NEWNS)
    return within(spec)


def enter(pid: int) -> None:
    """Join a process's user namespace and become root in it. Raises OperationFailed."""
    with failing("join user namespace of", f"process {pid}"):
        fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        syscalls.setns(fd, syscalls.CLONE_NEWUSER)
        os.close(fd)
    _become_root()


def within(spec: Spec) -> Spec:
    """Return the configuration as a process inside its user namespace needs it."""
    namespaces = tuple(namespace for namespace in spec.linux.namespaces if namespace.type != "user")
    return replace(spec, linux=replace(spec.linux, namespaces=namespaces, uid_mappings=(), gid_mappings=()))


def _is_own(mappings: IDMappings) -> bool:
    """Return whether only the caller's own ids are mapped, which needs no helper programs."""
    wanted = [(IDMapping(0, os.geteuid(), 1),), (IDMapping(0, os.getegid(), 1),)]
    return [mappings.uids, mappings.gids] == wanted


def _unshare_mapped(mappings: IDMappings) -> None:
    """Unshare, while a child that stays outside runs the programs that map our ids."""
    reader, writer = os.pipe()
    pid = os.getpid()
    helper = syscalls.fork()
    if helper == 0:
        os.close(writer)
        os._exit(_map(pid, mappings) if os.read(reader, 1) else 1)
    os.close(reader)
    try:
        with failing("unshare", "user namespace"):
            syscalls.unshare(syscalls.CLONE_NEWUSER)
        os.write(writer, b"0")
    finally:
        os.close(writer)
        status = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
    if status:
        raise RuntimeCoreError("map ids: newuidmap or newgidmap failed (see above); check /etc/subuid, /etc/subgid")


def _map(pid: int, mappings: IDMappings) -> int:
    for program, lines in (("newuidmap", mappings.uids), ("newgidmap", mappings.gids)):
        numbers = [str(number) for line in lines for number in (line.container_id, line.host_id, line.size)]
        try:
            child = os.posix_spawnp(program, [program, str(pid), *numbers], os.environ)
        except OSError as error:
            os.write(2, f"crisp-oci: run `{program}`: {error.strerror}\n".encode())
            return 1
        if os.waitpid(child, 0)[1]:
            return 1
    return 0


def _write(path: str, text: str) -> None:
    with failing("write", f"`{text}` to `{path}`"):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def _become_root() -> None:
    with failing("become", "root of the user namespace"):
        with contextlib.suppress(PermissionError):  # setgroups is denied: the groups stay, shown as nogroup
            os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        # The change of ids cleared it; without it we could not access our own children in /proc.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
