"""Creates and joins user namespaces (user_namespaces(7)), and maps ids.

A container's init is never cloned into its user namespace: it sets everything up with its parent's capabilities and
joins last. Namespaces that must belong to the user namespace (network, IPC, UTS) are therefore created together with
it, by `make` or by the pod's infra process. The function that writes the mappings is an argument: `write_mappings`
needs CAP_SETUID and CAP_SETGID in the parent namespace; an ordinary user has newuidmap(1) do it.
"""

from __future__ import annotations

import os
from errno import EINVAL

from linux import syscalls
from linux.tables import NAMESPACE_FLAGS, namespace_file
from runtime.errors import OperationFailed, RuntimeCoreError, SpecError, failing
from runtime.light import contextlib, dataclass, field, replace, socket
from runtime.spec.values import IDMapping, Spec
from runtime.wire.reports import MAKER, Conversation, Ready, Reporter, receive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Final

OWNED_KINDS: Final = frozenset(("network", "ipc", "uts"))
# linux/magic.h, and the file systems' own headers: those on which volumes are found, and which may not be id-mapped.
_FILE_SYSTEMS: Final = {
    0x6969: "nfs", 0xFE534D42: "smb", 0xFF534D42: "cifs", 0x65735546: "fuse", 0x01021997: "9p", 0x00C36400: "ceph",
    0x2FC12FC1: "zfs", 0x01021994: "tmpfs", 0x794C7630: "overlay", 0x6A656A63: "virtiofs", 0x9FA0: "proc",
    0x62656572: "sysfs",
}  # fmt: skip
_PROBED: Final = (IDMapping(0, 100_000, 65536),)


Line = tuple[int, int, int]  # id inside, id outside, size


@dataclass(frozen=True, slots=True)
class IDMappings:
    """Maps the ids of a user namespace to ids of its parent namespace."""

    uids: tuple[IDMapping, ...]
    gids: tuple[IDMapping, ...]

    def uid(self, container_id: int) -> int:
        """Return the parent's id of a user. Raises SpecError if it is not mapped."""
        return _outside(self.uids, container_id, "user")

    def gid(self, container_id: int) -> int:
        """Return the parent's id of a group. Raises SpecError if it is not mapped."""
        return _outside(self.gids, container_id, "group")

    @property
    def root(self) -> tuple[int, int]:
        """The parent's ids of user 0 and group 0."""
        return self.uid(0), self.gid(0)

    @classmethod
    def of_lines(cls, uids: Iterable[Line], gids: Iterable[Line]) -> IDMappings:
        """Build mappings from lines as in uid_map (user_namespaces(7))."""
        return cls(tuple(IDMapping(*line) for line in uids), tuple(IDMapping(*line) for line in gids))

    def lines(self) -> tuple[tuple[Line, ...], tuple[Line, ...]]:
        """Return the lines of users and of groups; `of_lines` is the inverse."""
        uids, gids = (tuple((m.container_id, m.host_id, m.size) for m in lines) for lines in (self.uids, self.gids))
        return uids, gids


def _outside(mappings: Sequence[IDMapping], container_id: int, what: str) -> int:
    for mapping in mappings:
        if mapping.container_id <= container_id < mapping.container_id + mapping.size:
            return mapping.host_id + container_id - mapping.container_id
    raise SpecError("linux.uidMappings, gidMappings", f"{what} {container_id} is not mapped in the user namespace")


def mappings_of(spec: Spec, member: str = "") -> IDMappings | None:
    """Return the mappings of a configuration's user namespace, or None (config-linux.md "User namespace mappings").

    A namespace that is joined by path has its mappings already. If the configuration lists them, they must be the same.
    If not, they are read from `member`, the /proc directory of a process in it, or from the process in the path. For
    any other path a forked child joins the namespace, which needs a single-threaded caller. Raises SpecError,
    OperationFailed.
    """
    linux, namespace = spec.linux, spec.linux.namespace("user")
    mappings = IDMappings(linux.uid_mappings, linux.gid_mappings)
    if namespace is None:
        if mappings.uids or mappings.gids:
            raise SpecError("linux.uidMappings", "needs a user namespace in linux.namespaces")
        return None
    if not (mappings.uids and mappings.gids):
        if not namespace.path:
            raise SpecError("linux.uidMappings", "and linux.gidMappings are required with a new user namespace")
        process = member or namespace.path.removesuffix("/ns/user")
        if process != namespace.path and process.startswith("/proc/"):
            mappings = _read_mappings(process)
        else:
            mappings = _mappings_by_joining(namespace.path)
    _ = mappings.root
    return mappings


def with_mappings(spec: Spec) -> Spec:
    """Add the mappings of a user namespace that is joined by path to the configuration. Raises as `mappings_of`."""
    linux, namespace = spec.linux, spec.linux.namespace("user")
    if namespace is None or not namespace.path or (linux.uid_mappings and linux.gid_mappings):
        return spec
    found = mappings_of(spec)
    assert found is not None
    return replace(spec, linux=replace(linux, uid_mappings=found.uids, gid_mappings=found.gids))


def _mappings_by_joining(path: str) -> IDMappings:
    """Read the mappings of a namespace bind-mounted at `path`. The kernel shows mappings only for processes."""
    found = []
    with failing("join user namespace", path):
        namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            hold(
                ("join user namespace", path),
                (),
                0,
                lambda: syscalls.setns(namespace, syscalls.CLONE_NEWUSER),
                lambda pid: found.append(_read_mappings(f"/proc/{pid}")),
            )
        finally:
            os.close(namespace)
    return found[0]


def _read_mappings(process: str) -> IDMappings:
    return IDMappings(_read(f"{process}/uid_map"), _read(f"{process}/gid_map"))


def _read(path: str) -> tuple[IDMapping, ...]:
    with failing("read", path), open(path) as file:
        return tuple(IDMapping(*map(int, line.split())) for line in file)


def write_mappings(pid: int, mappings: IDMappings) -> None:
    """Write the id mappings of a process's new user namespace with the caller's capabilities.

    Raises OperationFailed.
    """
    for name, lines in (("uid_map", mappings.uids), ("gid_map", mappings.gids)):
        path = f"/proc/{pid}/{name}"
        text = "".join(f"{line.container_id} {line.host_id} {line.size}\n" for line in lines)
        with failing("map ids", text.strip().replace("\n", ", ")), open(path, "w") as file:
            file.write(text)  # one write: the kernel accepts no second one


def make(
    mappings: IDMappings,
    kinds: Iterable[str] = (),
    write: Callable[[int, IDMappings], None] = write_mappings,
) -> dict[str, int]:
    """Return descriptors of a new user namespace ("user") and of new namespaces that it owns (of OWNED_KINDS).

    Forks a child that lives until they are open. Single-threaded callers only. Raises RuntimeCoreError.
    """
    wanted = ("user", *kinds)
    about = "make", "user namespace"
    return hold(about, wanted, _flags(wanted), in_parent=lambda pid: write(pid, mappings))


def make_owned(namespace: int, kinds: Sequence[str]) -> dict[str, int]:
    """Return descriptors of new namespaces of `kinds`, owned by the user namespace open at `namespace`; see `make`."""

    def move() -> None:
        syscalls.setns(namespace, syscalls.CLONE_NEWUSER)
        syscalls.unshare(_flags(kinds))

    return hold(("make namespaces in", "user namespace"), kinds, 0, move)


def _flags(kinds: Iterable[str]) -> int:
    return sum(NAMESPACE_FLAGS[kind] for kind in kinds)


def hold(
    about: tuple[str, str],
    kinds: Iterable[str],
    flags: int,
    in_child: Callable[[], None] = lambda: None,
    in_parent: Callable[[int], None] = lambda pid: None,
) -> dict[str, int]:
    """Clone a child with `flags`, run both sides' functions, and open the child's namespaces before it exits.

    Single-threaded callers only. Raises RuntimeCoreError. `about`, a verb and an object, names the operation in errors.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, failing(*about):
        with theirs:
            pid, pidfd = syscalls.clone(flags)
            if pid == 0:
                _stay(ours, Reporter(theirs), about, in_child)
        opened: dict[str, int] = {}
        try:
            conversation = Conversation(MAKER)
            receive(ours, conversation)
            if conversation.outcome is not None:
                raise conversation.outcome
            in_parent(pid)
            for kind in kinds:
                opened[kind] = os.open(namespace_file(pid, kind), os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            close_all(opened.values())
            raise
        finally:
            ours.close()
            os.close(pidfd)
            with contextlib.suppress(ChildProcessError):  # the zygote lets the kernel reap
                os.waitpid(pid, 0)
    return opened


def _stay(ours: socket.socket, reporter: Reporter, about: tuple[str, str], prepare: Callable[[], None]) -> None:
    """In the child: prepare, report, and keep the namespaces until the parent closes its end or dies."""
    try:
        ours.close()
        with failing(*about):
            prepare()
        reporter.say(Ready())
        reporter.await_answer()  # blocks: the parent sends none, and closes its end
    except BaseException as error:
        reporter.fail(error)
    finally:
        os._exit(0)


@dataclass(slots=True)
class UserNamespaces:
    """The open user namespaces that one start needs. Most containers need none."""

    mappings: IDMappings | None = None  # of the container's user namespace
    held: dict[str, int] = field(default_factory=dict)  # that namespace ("user"), and new namespaces that it owns
    of_mounts: dict[IDMappings, int] = field(default_factory=dict)  # the user namespaces of id-mapped mounts

    def close(self) -> None:
        close_all({*self.held.values(), *self.of_mounts.values()})
        self.held, self.of_mounts = {}, {}


def open_namespaces(spec: Spec, mappings: IDMappings | None, of_mounts: Iterable[IDMappings]) -> UserNamespaces:
    """Join or create a configuration's user namespace, and create one for each further mapping of its mounts.

    `mappings` are those that `mappings_of` returns. Forks as `make` does if a namespace is new. Raises OperationFailed.
    """
    found = UserNamespaces(mappings)
    namespace = spec.linux.namespace("user")
    try:
        if namespace is not None and mappings is not None:
            new = [n.type for n in spec.linux.namespaces if not n.path and n.type in OWNED_KINDS]
            if not namespace.path:
                found.held = make(mappings, new)
            else:
                with failing("join user namespace", namespace.path):
                    found.held["user"] = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
                if new:
                    found.held |= make_owned(found.held["user"], new)
            found.of_mounts[mappings] = found.held["user"]
        for wanted in of_mounts:
            if wanted not in found.of_mounts:
                found.of_mounts[wanted] = make(wanted)["user"]
    except BaseException:
        found.close()
        raise
    return found


def close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def enter(namespace: int) -> None:
    """Become root in the user namespace, without capabilities outside, and unshare the mount namespace.

    The new mount namespace belongs to the user namespace, and all its mounts are locked: no process in it can remove a
    mount that masks another, or make a read-only mount writable (mount_namespaces(7)). Raises OperationFailed.
    """
    with failing("join", "user namespace"):
        syscalls.setns(namespace, syscalls.CLONE_NEWUSER)
        become_root()
        syscalls.unshare(syscalls.CLONE_NEWNS)


def become_root() -> None:
    """Take the ids 0 in the user namespace that the caller has just joined. Others in it cannot read our memory."""
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # the change of ids may have reset it (prctl(2))


@contextlib.contextmanager
def effective(uid: int) -> Iterator[None]:
    """Run with the effective user `uid`, without its capabilities, for a caller that is root."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # see become_root


@contextlib.contextmanager
def inside(namespaces: int, flags: int) -> Iterator[None]:
    """Run in another namespace open at `namespaces`, or if that is a pidfd, in its process's that `flags` name."""
    home = [
        (os.open(namespace_file("self", kind), os.O_RDONLY | os.O_CLOEXEC), flag)
        for kind, flag in NAMESPACE_FLAGS.items()
        if flags & flag
    ]
    try:
        try:
            syscalls.setns(namespaces, flags)
            yield
        finally:
            for descriptor, flag in home:
                syscalls.setns(descriptor, flag)
    finally:
        close_all(descriptor for descriptor, _flag in home)


def idmap(tree: int, namespace: int, *, recursive: bool, about: str) -> None:
    """Map the owners of files in the detached mount open at `tree` by the user namespace (Linux 5.12).

    Raises OperationFailed, which names a file system that does not support it (EINVAL).
    """
    flags = syscalls.AT_EMPTY_PATH | (syscalls.AT_RECURSIVE if recursive else 0)
    operation = "map owners of files in"
    with failing(operation, about):
        try:
            syscalls.mount_setattr(tree, "", flags, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns=namespace)
        except OSError as error:
            if error.errno != EINVAL:
                raise
            kind = syscalls.filesystem_type(tree)
            name = _FILE_SYSTEMS.get(kind, f"{kind:#x}")
            where = f"`{about}`, whose file system ({name}) has no id-mapped mounts"
            raise OperationFailed.of(operation, where, error) from None


def refusal(directory: int) -> str:
    """Return why files below an open directory cannot be id-mapped for containers, "" if they can.

    Tries it. Single-threaded callers only. An overlay of id-mapped mounts needs Linux 5.19.
    """
    release = os.uname().release
    major, minor = release.split(".")[:2]
    if (int(major), int(minor.partition("-")[0])) < (5, 19):
        return f"needs Linux 5.19 or later, this is {release}"
    try:
        with failing("clone", "layers' directory"):
            tree = syscalls.open_tree(directory, "", syscalls.AT_EMPTY_PATH | syscalls.OPEN_TREE_CLONE)
        try:
            namespace = make(IDMappings(_PROBED, _PROBED))["user"]
            try:
                idmap(tree, namespace, recursive=False, about="the image store")
            finally:
                os.close(namespace)
        finally:
            os.close(tree)
    except RuntimeCoreError as error:
        return str(error)
    return ""
