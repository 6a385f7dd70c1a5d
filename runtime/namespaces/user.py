"""User namespaces (user_namespaces(7)): the mappings of ids, making one that others join, and joining it.

A container's init never is born in its user namespace: it sets everything up with the rights of its maker, and joins
last. What must belong to the namespace (network, IPC, UTS) is therefore made together with it, by `make` or by the
pod's infra process. Who writes the mappings is an argument: `write_mappings` needs CAP_SETUID and CAP_SETGID in the
parent namespace, an ordinary user has newuidmap(1) do it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

from linux import syscalls
from linux.tables import NAMESPACE_FLAGS, namespace_file
from runtime.errors import RuntimeCoreError, SpecError, failing
from runtime.light import dataclass, field, replace, socket
from runtime.spec.values import IDMapping, Spec
from runtime.wire.reports import MAKER, Conversation, Ready, Reporter, receive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

OWNED_KINDS: Final = frozenset(("network", "ipc", "uts"))
_PROBED: Final = (IDMapping(0, 100_000, 65536),)


Line = tuple[int, int, int]  # id inside, id outside, how many


@dataclass(frozen=True, slots=True)
class IDMappings:
    """Which ids of the parent namespace those of a user namespace are."""

    uids: tuple[IDMapping, ...]
    gids: tuple[IDMapping, ...]

    def uid(self, container_id: int) -> int:
        """The parent's id of a user. Raises SpecError if it is not mapped."""
        return _outside(self.uids, container_id, "user")

    def gid(self, container_id: int) -> int:
        """The parent's id of a group. Raises SpecError if it is not mapped."""
        return _outside(self.gids, container_id, "group")

    @property
    def root(self) -> tuple[int, int]:
        """The parent's ids of user and group 0."""
        return self.uid(0), self.gid(0)

    @classmethod
    def of_lines(cls, uids: Iterable[Line], gids: Iterable[Line]) -> IDMappings:
        """By lines as those of uid_map (user_namespaces(7))."""
        return cls(tuple(IDMapping(*line) for line in uids), tuple(IDMapping(*line) for line in gids))

    def lines(self) -> tuple[tuple[Line, ...], tuple[Line, ...]]:
        """Of the users and the groups; `of_lines` is its inverse."""
        uids, gids = (tuple((m.container_id, m.host_id, m.size) for m in lines) for lines in (self.uids, self.gids))
        return uids, gids


def _outside(mappings: Sequence[IDMapping], container_id: int, what: str) -> int:
    for mapping in mappings:
        if mapping.container_id <= container_id < mapping.container_id + mapping.size:
            return mapping.host_id + container_id - mapping.container_id
    raise SpecError("linux.uidMappings, gidMappings", f"{what} {container_id} is not mapped in the user namespace")


def mappings_of(spec: Spec, member: str = "") -> IDMappings | None:
    """The mappings of a configuration's user namespace, None without one (config-linux.md "User namespace mappings").

    A namespace that is joined by path has them already: those listed must be them, and where none are listed they are
    read from `member`, the /proc directory of a process in it, or from whose the path is; a path that is no process's
    takes a child that joins, and single-threaded callers. Raises SpecError, OperationFailed.
    """
    linux, namespace = spec.linux, spec.linux.namespace("user")
    mappings = IDMappings(linux.uid_mappings, linux.gid_mappings)
    if namespace is None:
        if mappings.uids or mappings.gids:
            raise SpecError("linux.uidMappings", "a user namespace is needed in linux.namespaces")
        return None
    if not (mappings.uids and mappings.gids):
        if not namespace.path:
            raise SpecError("linux.uidMappings", "is required with a new user namespace, and linux.gidMappings too")
        process = member or namespace.path.removesuffix("/ns/user")
        if process != namespace.path and process.startswith("/proc/"):
            mappings = _read_mappings(process)
        else:
            mappings = _mappings_by_joining(namespace.path)
    _ = mappings.root
    return mappings


def with_mappings(spec: Spec) -> Spec:
    """The configuration with the mappings listed that a user namespace to join has. Raises as `mappings_of`."""
    linux, namespace = spec.linux, spec.linux.namespace("user")
    if namespace is None or not namespace.path or (linux.uid_mappings and linux.gid_mappings):
        return spec
    found = mappings_of(spec)
    assert found is not None
    return replace(spec, linux=replace(linux, uid_mappings=found.uids, gid_mappings=found.gids))


def _mappings_by_joining(path: str) -> IDMappings:
    """Those of the namespace that a file is mounted on, as seen from here: they are told of processes only."""
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
    """Give a process's new user namespace its ids, with the caller's own rights. Raises OperationFailed."""
    for name, lines in (("uid_map", mappings.uids), ("gid_map", mappings.gids)):
        path = f"/proc/{pid}/{name}"
        text = "".join(f"{line.container_id} {line.host_id} {line.size}\n" for line in lines)
        with failing("map ids", text.strip().replace("\n", ", ")), open(path, "w") as file:
            file.write(text)  # at once: the kernel takes one write


def make(
    mappings: IDMappings,
    kinds: Iterable[str] = (),
    write: Callable[[int, IDMappings], None] = write_mappings,
) -> dict[str, int]:
    """Descriptors of a new user namespace ("user") and of new namespaces that it owns (of OWNED_KINDS).

    Forks a child that lives until they are open; single-threaded callers only. Raises RuntimeCoreError.
    """
    wanted = ("user", *kinds)
    about = "make", "user namespace"
    return hold(about, wanted, _flags(wanted), in_parent=lambda pid: write(pid, mappings))


def make_owned(namespace: int, kinds: Sequence[str]) -> dict[str, int]:
    """Descriptors of new namespaces of `kinds` that belong to the user namespace open at `namespace`; see `make`."""

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
    """Clone a child by `flags`, have both sides do their part, and open the child's namespaces before it ends.

    Single-threaded callers only. Raises RuntimeCoreError; what the kernel refuses in the words of `about`, a verb and
    an object.
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
    """In the child: prepare, tell, and hold the namespaces until the parent has closed its end, or is dead."""
    try:
        ours.close()
        with failing(*about):
            prepare()
        reporter.say(Ready())
        reporter.await_answer()  # there is none
    except BaseException as error:
        reporter.fail(error)
    finally:
        os._exit(0)


@dataclass(slots=True)
class UserNamespaces:
    """What one start needs of user namespaces, all of it open: nothing at all for most containers."""

    mappings: IDMappings | None = None  # of the container's own
    held: dict[str, int] = field(default_factory=dict)  # that one ("user"), and what is new and belongs to it
    of_mounts: dict[IDMappings, int] = field(default_factory=dict)  # what id-mapped mounts map by

    def close(self) -> None:
        close_all({*self.held.values(), *self.of_mounts.values()})
        self.held, self.of_mounts = {}, {}


def open_namespaces(spec: Spec, mappings: IDMappings | None, of_mounts: Iterable[IDMappings]) -> UserNamespaces:
    """Join or make the user namespace of a configuration, and one for each mapping that its mounts have besides.

    `mappings` are `mappings_of` the configuration. Forks as `make` does, where something is new. Raises
    OperationFailed.
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
    """Become root of the user namespace, with all rights in it and none outside, in a copy of the mount namespace.

    The copy is the user namespace's own, and every mount in it is locked: no process in it can take away what masks
    another mount, or make writable what is read-only (mount_namespaces(7)). Raises OperationFailed.
    """
    with failing("join", "user namespace"):
        syscalls.setns(namespace, syscalls.CLONE_NEWUSER)
        become_root()
        syscalls.unshare(syscalls.CLONE_NEWNS)


def become_root() -> None:
    """Take the ids 0 of the user namespace that the caller has just joined, and stay unreadable to others in it."""
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # the change of identity may have reset it (prctl(2))


@contextlib.contextmanager
def effective(uid: int) -> Iterator[None]:
    """The caller, who is root, with the effective user `uid` for a while, and without its rights."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # see become_root


@contextlib.contextmanager
def inside(namespaces: int, flags: int) -> Iterator[None]:
    """The caller in other namespaces for a while: the one open at `namespaces`, or those of that pidfd by `flags`."""
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
    """Have the detached mount open at `tree` show its files' owners as the user namespace maps them (Linux 5.12).

    Raises OperationFailed; EINVAL says that the file system has no such mounts.
    """
    flags = syscalls.AT_EMPTY_PATH | (syscalls.AT_RECURSIVE if recursive else 0)
    with failing("map owners of files in", about):
        syscalls.mount_setattr(tree, "", flags, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns=namespace)


def refusal(directory: int) -> str:
    """Why containers in user namespaces cannot have the files below an open directory as their own; "" if they can.

    Tries it; single-threaded callers only. An overlay of such mounts takes Linux 5.19.
    """
    release = os.uname().release
    major, minor = release.split(".")[:2]
    if (int(major), int(minor.partition("-")[0])) < (5, 19):
        return f"Linux 5.19 is needed, this is {release}"
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
