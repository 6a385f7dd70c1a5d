"""Creates a container from a bundle, up to an init that waits to be started. For `create` and `run`."""

from __future__ import annotations

import os
import time

from linux import syscalls
from linux.user_namespaces import in_user_namespace
from runtime import validation
from runtime.command import removal
from runtime.command.child import Child, Launch
from runtime.command.flags import Flag, Options, UsageError
from runtime.command.group import ContainerGroup
from runtime.command.handover import (
    PIDFD_SOCKET,
    PRESERVE_FDS,
    preserved_descriptors,
    send_console,
    send_descriptor,
    send_listener,
    write_pid_file,
)
from runtime.command.invocation import Context, owner_name, require_readonly_interpreter
from runtime.command.record import Record, start_time, state_document
from runtime.command.store import NOTIFY_DIRECTORY, Entry
from runtime.errors import SpecError, failing
from runtime.light import contextlib, dataclass, json, replace, socket
from runtime.namespaces import user as userns
from runtime.process.capabilities import left_out
from runtime.process.clone import clone_into
from runtime.process.gate import Gate, waiting_program
from runtime.process.hooks import enter_the_container, run_hooks
from runtime.process.init import MAKE_EMPTY, Start, clock_offsets, clone_flags, container_init
from runtime.rootfs.plan import MountPlan, absolute, plan_mounts
from runtime.rootfs.tree import ATTACH_POINT
from runtime.spec.parse import parse
from runtime.spec.values import Mount, Process, Spec, is_bind
from runtime.wire.reports import INIT, Conversation, Reporter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

BUNDLE_FLAGS: Final = (  # restore has them too
    Flag("bundle", short="b", argument="DIR", help="the bundle's directory (default: the current one)"),
    Flag("console-socket", argument="PATH", help="send the terminal's master to this unix socket"),
    Flag("pid-file", argument="FILE", help="write the init's process id to this file"),
    Flag("no-pivot", help="accepted and ignored"),
)
FLAGS: Final = (
    *BUNDLE_FLAGS,
    PIDFD_SOCKET,
    Flag("no-new-keyring", help="let the container keep the caller's session keyring"),
    PRESERVE_FDS,
)


# Values of linux.rootfsPropagation with which a container sees later mounts of the host below its rootfs. As with runc,
# this is so without a value too.
_ROOTS_THAT_FOLLOW: Final = ("", "slave", "rslave")


@dataclass(slots=True)
class Created:
    """A created container. The caller closes `pidfd` and `console`, the terminal's master (-1 without one)."""

    entry: Entry
    record: Record
    spec: Spec
    pidfd: int
    console: int = -1


def create(context: Context, options: Options, id: str, *, console_needed: bool) -> Created:
    """Create the container of the bundle. On failure nothing is left. Single-threaded callers only.

    `console_needed`: the caller will exit, so a terminal must go to --console-socket. Raises RuntimeCoreError.
    """
    preserved = preserved_descriptors(options)
    bundle = os.path.abspath(options.text("bundle", "."))
    text, spec, process = load(bundle, context.log.warning)
    socket_path = options.text("console-socket")
    if process.terminal and console_needed and not socket_path:
        raise UsageError("cannot allocate tty if runc will detach without setting console socket")
    if socket_path and not process.terminal:
        raise UsageError("cannot use console socket if runc will not detach or allocate tty")
    process = _with_listening(process, preserved)
    notified = bool(os.environ.get("NOTIFY_SOCKET"))
    if notified:
        from runtime.command import notify

        spec, process = notify.with_socket(spec, process, context.store.entry(id).path(NOTIFY_DIRECTORY))
    owner = owner_name()
    if os.geteuid() != 0:
        from runtime.command import rootless

        spec = rootless.enter_new(spec)
        maker = _Maker(context, spec, process, bundle, id, owner)
        maker.check()
    else:
        maker = _Maker(context, spec, process, bundle, id, owner)
        maker.check()
        require_readonly_interpreter(needed=maker.execs_from_interpreter())
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # hides our memory, init's until its execve, from the container
    entry = context.store.reserve(id)
    with contextlib.ExitStack() as undo:
        undo.callback(entry.remove)
        entry.write("config.json", text)
        if notified:
            os.mkdir(entry.path(NOTIFY_DIRECTORY), 0o755)
        created = maker.make(entry, undo, preserved, keyring=not options.switch("no-new-keyring"))
        if created.console >= 0 and socket_path:
            send_console(created.console, socket_path)
            os.close(created.console)
            created.console = -1
        if path := options.text("pidfd-socket"):
            send_descriptor("pidfd", created.pidfd, path, b"standard")
        if pid_file := options.text("pid-file"):
            write_pid_file(pid_file, created.record.pid)
        undo.pop_all()
    return created


def new_record(id: str, spec: Spec, bundle: str, owner: str) -> Record:
    """Return the record of a container that is being created. `bundle` is an absolute path."""
    return Record(
        id=id,
        oci_version=spec.oci_version,
        bundle=bundle,
        rootfs=os.path.abspath(os.path.join(bundle, spec.root.path)),
        created=_now(),
        owner=owner,
    )


def load(bundle: str, warn: Callable[[str], None]) -> tuple[bytes, Spec, Process]:
    """Return the bundle's configuration, as text and as values. `warn` gets deprecated values. Raises SpecError."""
    path = os.path.join(bundle, "config.json")
    with failing("read", path), open(path, "rb") as file:
        text = file.read()
    try:
        document = json.loads(text)
    except ValueError as error:
        raise SpecError("", f"{path} is not JSON: {error}") from error
    spec = parse(document)
    process = spec.process
    if process is None:
        raise SpecError("process", "is required")
    validation.check(spec)
    for index, mount in enumerate(spec.mounts):
        if not mount.destination.startswith("/"):
            warn(f"mounts[{index}].destination: {mount.destination!r} is relative, which is deprecated")
    user = spec.linux.namespace("user")
    if user is not None and user.path and os.geteuid() == 0:
        validation.check_namespaces(spec)
        spec = userns.with_mappings(spec)
    return text, spec, process


def _with_listening(process: Process, preserved: int) -> Process:
    listening = os.environ.get("LISTEN_FDS", "")
    if not preserved or not listening.isdecimal():
        return process
    return replace(process, env=(*process.env, f"LISTEN_FDS={listening}", "LISTEN_PID=1"))


class _Maker:
    """Runs the steps of a creation. Each pushes its cleanup onto the given stack."""

    def __init__(
        self, context: Context, spec: Spec, process: Process, bundle: str, id: str, owner: str
    ) -> None:
        spec = with_sources(spec, bundle)
        self._context = context
        self._spec = spec
        self._process = process
        self._bundle = bundle
        self._id = id
        self._owner = owner
        self._in_user_namespace = context.rootless and in_user_namespace()
        self._rootfs_path = rootfs_path(bundle, spec)
        self._mappings = userns.mappings_of(spec)
        exact = not self._in_user_namespace
        plans = plan_mounts(spec, self._mappings, exact=exact)
        self._mounts = [_from_inside(plan, self._rootfs_path) for plan in plans]
        self._flags = clone_flags(spec)
        self._compiled = (b"", 0)

    def check(self) -> None:
        """Refuse what cannot work, before anything is created."""
        validation.check_host(self._spec)
        if self._process.capabilities is not None:
            for sentence in left_out(self._process.capabilities):
                self._context.log.warning(sentence)
        self._compiled = compiled_filter(self._spec)

    def execs_from_interpreter(self) -> bool:
        """Return whether the interpreter itself will execute the container's program."""
        probe = waiting_program(-1, -1, self._process, self._spec.linux.seccomp)
        if probe >= 0:
            os.close(probe)
        return probe < 0 or bool(self._spec.hooks.start_container)

    def make(self, entry: Entry, undo: contextlib.ExitStack, preserved: int, *, keyring: bool) -> Created:
        record = new_record(self._id, self._spec, self._bundle, self._owner)
        group = ContainerGroup(self._context, self._spec, record)
        cgroup = group.make(undo)
        where = f"cgroup {record.cgroup}" if record.cgroup else "no cgroup of its own"
        self._context.log.debug(f"container {record.id}: rootfs `{record.rootfs}`, {where}")
        entry.save(record)
        opened = undo.enter_context(contextlib.ExitStack())  # closed when the init runs
        gate = self._make_gate(entry, opened)
        users = userns.open_namespaces(self._spec, self._mappings, [plan.idmap for plan in self._mounts if plan.idmap])
        undo.callback(users.close)
        program, flags = self._filter(entry)
        start = Start(
            container_id=self._id,
            spec=self._spec,
            process=self._process,
            mounts=self._mounts,
            rootfs=self._open_rootfs(opened),
            empty_mount_namespace=-1 if self._wants_host_mounts() else MAKE_EMPTY,
            cgroup=cgroup,
            in_unified_cgroup=bool(cgroup.unified),
            stdio=(0, 1, 2),
            filter_program=program,
            filter_flags=flags,
            users=users,
            gate=gate,
            preserved=preserved,
            keyring=keyring,
            attach_point=record.rootfs if self._wants_host_mounts() else ATTACH_POINT,
            host_trees=self._clone_host_trees(opened),
            links=self._open_links(opened),
        )
        created = self._clone(start, entry, record, undo)
        group.end_placeholder()
        users.close()
        opened.close()
        return created

    def _make_gate(self, entry: Entry, undo: contextlib.ExitStack) -> Gate:
        wait, report = (_fifo(entry.path(name), undo) for name in ("exec.fifo", "exec.report"))
        gate = Gate(wait, report, waiting_program(wait, report, self._process, self._spec.linux.seccomp))
        undo.callback(_close, gate.program)
        return gate

    def _open_rootfs(self, undo: contextlib.ExitStack) -> int:
        with failing("open rootfs", self._rootfs_path):
            flags = syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE
            rootfs = open_without_links(self._rootfs_path, flags | syscalls.OPEN_TREE_CLONE)
            slave = self._spec.linux.rootfs_propagation in _ROOTS_THAT_FOLLOW
            propagation = syscalls.MS_SLAVE if slave else syscalls.MS_PRIVATE
            syscalls.mount_setattr(rootfs, "", flags, propagation=propagation)
        undo.callback(_close, rootfs)
        return rootfs

    def _wants_host_mounts(self) -> bool:
        # In a user namespace, proc can be mounted only if another proc is visible already.
        return self._in_user_namespace or enter_the_container(self._spec.hooks)

    def _clone_host_trees(self, undo: contextlib.ExitStack) -> dict[str, int]:
        if not self._in_user_namespace:
            return {}
        from runtime.rootfs.host_trees import host_trees

        trees = host_trees(device.path for device in self._spec.linux.devices)
        undo.callback(userns.close_all, trees.values())
        return trees

    def _open_links(self, undo: contextlib.ExitStack) -> int:
        if not self._spec.linux.net_devices:
            return -1
        from runtime.namespaces import netdevices

        links = netdevices.open_links()
        undo.callback(_close, links)
        return links

    def _filter(self, entry: Entry) -> tuple[bytes, int]:
        program, flags = self._compiled
        if program:
            entry.write("filter", program)
        return program, flags

    def _clone(self, start: Start, entry: Entry, record: Record, undo: contextlib.ExitStack) -> Created:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs, failing("clone", "container init"):
                child = Child(
                    *clone_into(
                        start.cgroup,
                        self._flags,
                        lambda: container_init(start, Reporter(theirs)),
                        clocks=clock_offsets(self._spec),
                        once=self._in_user_namespace,
                    )
                )
            undo.callback(child.end)
            self._context.log.debug(f"container {record.id}: init is process {child.pid}")
            self._save(entry, record, child)
            created = Created(entry, record, self._spec, child.pidfd)
            undo.callback(lambda: _close(created.console))
            launch = Launch(
                ours,
                child,
                Conversation(INIT, bears=start.bears, listens=True),
                warn=self._context.log.warning,
                hooks=lambda: self._run_hooks(record, undo),
                listener=lambda fd: self._hand_over_listener(fd, record, child),
            )
            created.console = launch.until_ready()
            if child.pid != record.pid:
                self._save(entry, record, child)
                created.pidfd = child.pidfd
        return created

    def _save(self, entry: Entry, record: Record, child: Child) -> None:
        record.pid, record.start_time = child.pid, start_time(child.pid)
        entry.save(record)

    def _hand_over_listener(self, listener: int, record: Record, child: Child) -> None:
        state = state_document(record, "creating", self._spec.annotations) | {"pid": child.pid}
        send_listener(self._spec, listener, child.pid, state)

    def _run_hooks(self, record: Record, undo: contextlib.ExitStack) -> dict[str, Any]:
        state = state_document(record, "creating", self._spec.annotations) | {"pid": record.pid}
        undo.callback(removal.run_poststop, self._spec.hooks, state, self._context.log)
        run_hooks("prestart", self._spec.hooks.prestart, state)
        run_hooks("createRuntime", self._spec.hooks.create_runtime, state)
        return state


def compiled_filter(spec: Spec) -> tuple[bytes, int]:
    """Return the container's seccomp filter (b"" without one) and its flags. Raises RuntimeCoreError."""
    if spec.linux.seccomp is None:
        return b"", 0
    from runtime.seccomp import compile as seccomp

    profile = spec.linux.seccomp
    return seccomp.compile_filter(profile, listener=True), seccomp.filter_flags(profile)


def rootfs_path(bundle: str, spec: Spec) -> str:
    """Return the rootfs's real path. Only the bundle's path may contain links. Raises SpecError."""
    path = os.path.normpath(os.path.join(os.path.realpath(bundle), spec.root.path))
    if not os.path.isdir(path):
        raise SpecError("root.path", f"`{path}` is not a directory")
    if os.path.realpath(path) != path:
        raise SpecError("root.path", f"`{path}` contains a symbolic link; use the real path")
    return path


def open_without_links(path: str, flags: int) -> int:
    """Clone the mounts at an absolute path, which must not contain links any more. Raises OSError."""
    slash = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS
        found = syscalls.openat2(slash, path.lstrip("/") or ".", os.O_PATH | os.O_DIRECTORY, resolve)
    finally:
        os.close(slash)
    try:
        return syscalls.open_tree(found, "", flags)
    finally:
        os.close(found)


def with_sources(spec: Spec, bundle: str) -> Spec:
    """Make relative sources of bind mounts absolute, from the bundle (config.md "Mounts"), and destinations from /."""
    mounts = tuple(_from_bundle(mount, bundle) for mount in spec.mounts)
    return spec if mounts == spec.mounts else replace(spec, mounts=mounts)


def _from_inside(plan: MountPlan, root: str) -> MountPlan:
    """Mark a bind source inside the rootfs (real path `root`): it is looked up after the mounts before it."""
    if not plan.bind:
        return plan
    source = os.path.realpath(plan.source)
    if source != root and not source.startswith(f"{root}/"):
        return plan
    return replace(plan, inside=source[len(root) :] or "/")


def _from_bundle(mount: Mount, bundle: str) -> Mount:
    relative = is_bind(mount.type, mount.options) and mount.source and not mount.source.startswith("/")
    source = os.path.join(bundle, mount.source) if relative else mount.source
    return replace(mount, source=source, destination=absolute(mount.destination))


def _fifo(path: str, undo: contextlib.ExitStack) -> int:
    """Make a FIFO and open it in both directions, so that reading waits for a writer instead of ending."""
    with failing("make", path):
        os.mkfifo(path, 0o600)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    undo.callback(_close, fd)
    return fd


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def _now() -> str:
    ns = time.time_ns()
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(ns // 10**9))}.{ns % 10**9:09}Z"

