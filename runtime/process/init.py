"""Runs a container's first process, from the clone to the user's program, in the child that the shim cloned.

The order matters, and is all here: steps that need the host's view (cgroups, /proc, bind sources) come before the child
enters its own mount namespace; steps that need root come before `process.become`.
"""

from __future__ import annotations

import gc
import os
import time

from linux import syscalls
from linux.tables import NAMESPACE_FLAGS
from runtime.cgroups import Cgroup
from runtime.errors import SpecError, failing
from runtime.light import dataclass, field, replace, signal, socket
from runtime.namespaces import user as userns
from runtime.namespaces.sysctl import write_sysctls
from runtime.namespaces.user import OWNED_KINDS, UserNamespaces
from runtime.process import become as process
from runtime.process import procfs, scheduling
from runtime.process.gate import Gate
from runtime.process.home import with_home
from runtime.process.hooks import run_hooks
from runtime.process.parent import die_with_maker
from runtime.process.terminal import hand_over, open_multiplexer, open_peer, take_control
from runtime.rootfs.mount_sources import CgroupView, open_sources
from runtime.rootfs.plan import MountPlan
from runtime.rootfs.tree import ATTACH_POINT, Rootfs, enter_empty_root, propagate_again
from runtime.seccomp.passage import Passage
from runtime.spec import values as oci
from runtime.wire.reports import Executing, HooksDue, Reporter, Warned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Final, NoReturn


MAKE_EMPTY: Final = -2


@dataclass(slots=True)
class Start:
    """Everything that a container's init needs. The clone inherits the descriptors."""

    container_id: str
    spec: oci.Spec
    process: oci.Process
    mounts: Sequence[MountPlan]
    rootfs: int  # detached root mount
    empty_mount_namespace: int  # -1: use a copy of the caller's (see hooks.enter_the_container); or MAKE_EMPTY
    cgroup: Cgroup
    in_unified_cgroup: bool  # already cloned into the v2 cgroup
    stdio: tuple[int, int, int]  # ignored with a terminal
    filter_program: bytes = b""
    filter_flags: int = 0
    gate: Gate | None = None  # holds the program back until it is started
    preserved: int = 0  # descriptors after the standard streams that the program gets
    keyring: bool = True  # whether to make a new session keyring
    attach_point: str = ATTACH_POINT
    users: UserNamespaces = field(default_factory=UserNamespaces)
    trees: Mapping[str, int] = field(default_factory=dict)  # detached mounts to use for bind sources
    directories: Mapping[str, bool] = field(default_factory=dict)  # whether a bind source is one, by destination
    host_trees: Mapping[str, int] = field(default_factory=dict)  # see Rootfs.host_trees
    links: int = -1  # where linux.netDevices are moved from (netdevices.open_links)
    trace: bool = False
    steps: list[tuple[str, int]] = field(default_factory=list)

    @property
    def bears(self) -> bool:
        """Whether the init clones the program into a PID namespace with other processes (`process.bear`)."""
        namespace = self.spec.linux.namespace("pid")
        return namespace is not None and bool(namespace.path)

    def step(self, name: str) -> None:
        """Record that a step is done, with the monotonic clock in nanoseconds."""
        if self.trace:
            self.steps.append((name, time.monotonic_ns()))


def clone_flags(spec: oci.Spec) -> int:
    """Return the flags of the namespaces to create by the clone.

    Not the mount and cgroup namespaces, which init creates itself, the time namespace, which exists before
    (`clock_offsets`), and those owned by a user namespace, which are created with it. A new PID namespace is not owned
    by the user namespace: for that a process inside would have to clone init, and init is the shim's own child.
    """
    flags = 0
    elsewhere = {"mount", "cgroup", "user", "time", *(OWNED_KINDS if spec.linux.namespace("user") else ())}
    for namespace in spec.linux.namespaces:
        if not namespace.path and namespace.type not in elsewhere:
            flags |= NAMESPACE_FLAGS[namespace.type]
    if spec.linux.namespace("mount") is None:
        reason = "add a mount namespace: without one the container's mounts would be made, and left, on the host"
        raise SpecError("linux.namespaces", reason)
    return flags


def clock_offsets(spec: oci.Spec) -> Mapping[str, oci.TimeOffset] | None:
    """Return the clock offsets of a new time namespace, None for no new one."""
    namespace = spec.linux.namespace("time")
    return None if namespace is None or namespace.path else spec.linux.time_offsets


def cgroup_view(cgroup: Cgroup, *, namespaced: bool = True) -> CgroupView:
    """Return what a `cgroup` mount of the container shows: its own directory in each hierarchy.

    On version 2 without a cgroup namespace it shows the whole hierarchy, which the paths in /proc/self/cgroup refer to.
    """
    hierarchies = cgroup.hierarchies
    if hierarchies.pure_v2:
        return CgroupView((("", cgroup.unified if namespaced else hierarchies.unified),))
    names = {mountpoint: os.path.basename(mountpoint) for mountpoint in dict.fromkeys(hierarchies.v1.values())}
    directories = tuple((name, mountpoint + cgroup.path) for mountpoint, name in names.items())
    links = tuple(
        (controller, names[mountpoint])
        for controller, mountpoint in hierarchies.v1.items()
        if controller in names[mountpoint].split(",") and controller != names[mountpoint]
    )
    return CgroupView(directories, links)


def container_init(start: Start, reporter: Reporter) -> NoReturn:
    """Run `start` up to the execve. A failure is reported and ends the process with status 1."""
    try:
        _initialise(start, reporter)
    except BaseException as error:  # the child must never return into the shim's code
        reporter.fail(error)
    os._exit(1)


def leave_the_loop() -> None:
    """Undo, in a child, what the shim's event loop set up."""
    gc.disable()  # a finaliser must not close descriptors that the child reuses
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _initialise(start: Start, reporter: Reporter) -> NoReturn:
    spec, linux = start.spec, start.spec.linux
    start.steps.clear()  # the shim has the steps from before the clone
    leave_the_loop()
    start.cgroup.join_self(unified=not start.in_unified_cgroup)
    scheduling.leave_the_makers_cpus()
    if owner := cgroup_owner(start):
        start.cgroup.delegate(owner)
    start.step("cgroup joined")
    shared = _open_pid_namespace(spec)
    os.setsid()
    if start.keyring:
        process.new_keyring(start.container_id)
    _set_oom_score(start, reporter)
    _enter_namespaces(spec, start.users.held)
    if start.links >= 0:
        from runtime.namespaces import netdevices

        netdevices.move_here(start.links, linux.net_devices)
    start.step("namespaces entered")
    proc_contexts = _proc_contexts(shared, start.mounts)
    view = cgroup_view(start.cgroup, namespaced=linux.namespace("cgroup") is not None)
    sources = open_sources(start.mounts, view, start.trees, start.users)
    with failing("make", "mount namespace"):
        if start.empty_mount_namespace == MAKE_EMPTY:
            enter_empty_root()
        elif start.empty_mount_namespace >= 0:
            syscalls.setns(start.empty_mount_namespace, syscalls.CLONE_NEWNS)
            syscalls.unshare(syscalls.CLONE_NEWNS)
        else:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    rootfs = Rootfs(start.rootfs, start.users)
    rootfs.host_trees, rootfs.proc_contexts = start.host_trees, proc_contexts
    rootfs.attach(start.attach_point)
    start.step("rootfs attached")
    rootfs.populate(start.mounts, sources, view, linux.devices)
    start.step("mounts made")
    stdio = start.stdio
    if start.process.terminal:
        stdio = _open_console(rootfs, start, reporter)
    with failing("make working directory", start.process.cwd):
        os.close(rootfs.open_target(start.process.cwd, is_directory=True))
    state = _creation_hooks(spec.hooks, start, reporter)
    rootfs.pivot()
    rootfs.restrict(linux, readonly=spec.root.readonly)
    start.step("rootfs finished")
    scheduling.apply(start.process, linux, inherited=start.bears)
    for target, fd in enumerate(stdio):
        os.dup2(fd, target)
    if shared >= 0:
        with failing("enter namespace", "pid"):
            syscalls.setns(shared, syscalls.CLONE_NEWPID)
            os.close(shared)
    if start.users.held:
        _enter_user_namespace(start)

    becoming = with_home(start.process)

    def start_hooks() -> None:
        started = {**state, "status": "created", "pid": os.getpid()}
        run_hooks("startContainer", spec.hooks.start_container, started, environment=becoming.env)

    def announce() -> None:
        if start.gate is None:
            start_hooks()
        start.step("ready to exec")
        reporter.say(Executing(start.steps))

    gate = start.gate
    if gate is not None and spec.hooks.start_container:
        gate = replace(gate, program=-1, on_open=start_hooks)
    goes_on = process.bear if start.bears else process.become
    goes_on(
        becoming,
        start.filter_program,
        start.filter_flags,
        reporter,
        announce,
        gate=gate,
        preserved=start.preserved,
    )


def _creation_hooks(hooks: oci.Hooks, start: Start, reporter: Reporter) -> dict[str, Any]:
    """Let the parent run prestart and createRuntime hooks, then run createContainer hooks.

    Return the container's state. createContainer and startContainer hooks see the pid inside the container (runtime.md
    "State"), and start in its rootfs.
    """
    if not (hooks.prestart or hooks.create_runtime or hooks.create_container or hooks.start_container):
        return {}
    reporter.say(HooksDue())
    state = reporter.await_answer()
    if state is None:
        os._exit(1)  # the parent knows why
    if hooks.create_container:
        os.fchdir(start.rootfs)
        created = {**state, "pid": os.getpid()}
        run_hooks("createContainer", hooks.create_container, created, environment=start.process.env)
    return state


def cgroup_owner(start: Start) -> int:
    """Return the host's id of the user who gets the container's cgroup, 0 if it stays root's.

    runtime-spec config-linux.md, "Cgroup ownership": only on version 2, with a new cgroup namespace and the cgroup file
    system mounted read-write.
    """
    namespace, mappings = start.spec.linux.namespace("cgroup"), start.users.mappings
    if namespace is None or namespace.path or not start.cgroup.hierarchies.pure_v2:
        return 0
    mounted = [plan for plan in start.mounts if plan.type in ("cgroup", "cgroup2") and not plan.bind]
    if not mounted or (mounted[-1].attr_set | mounted[-1].tree_attr_set) & syscalls.MOUNT_ATTR_RDONLY:
        return 0
    user = start.process.user.uid
    return mappings.uid(user) if mappings else user


def _set_oom_score(start: Start, reporter: Reporter) -> None:
    if start.process.oom_score_adj is None:
        return
    with failing("set oom_score_adj", str(start.process.oom_score_adj)):
        warning = process.set_oom_score_adj(start.process.oom_score_adj)
    if warning:
        reporter.say(Warned(warning))


def _open_pid_namespace(spec: oci.Spec) -> int:
    """Open the existing PID namespace that the container joins; -1 for none. It is joined last, by the clone."""
    namespace = spec.linux.namespace("pid")
    if namespace is None or not namespace.path:
        return -1
    with failing("join pid namespace", namespace.path):
        return os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)


def _proc_contexts(shared: int, mounts: Sequence[MountPlan]) -> list[int]:
    """Open a context for each proc mount that must show a PID namespace which the caller is not in."""
    count = sum(plan.type == "proc" and not plan.bind for plan in mounts)
    return procfs.contexts(shared, count) if shared >= 0 and count else []


def _enter_user_namespace(start: Start) -> None:
    """Enter the user namespace, as the host's root's last step.

    After it the process has rights only in the container.
    """
    process.raise_hard_limits(start.process.rlimits)
    if start.users.mappings is not None:
        process.own_streams(start.users.mappings.uid(start.process.user.uid))
    userns.enter(start.users.held["user"])
    propagate_again(start.mounts, start.spec.linux)
    die_with_maker()  # the change of ids cleared it
    if start.keyring:
        process.new_keyring(start.container_id)  # the previous one belongs to the host's root
    start.step("user namespace entered")


def _enter_namespaces(spec: oci.Spec, held: Mapping[str, int]) -> None:
    for namespace in spec.linux.namespaces:
        if namespace.type in held and namespace.type != "user":
            with failing("enter namespace", namespace.type):
                syscalls.setns(held[namespace.type], NAMESPACE_FLAGS[namespace.type])
        elif namespace.path and namespace.type not in ("pid", "mount", "user"):
            with failing(f"join {namespace.type} namespace", namespace.path):
                fd = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
                syscalls.setns(fd, NAMESPACE_FLAGS[namespace.type])
                os.close(fd)
        elif namespace.type == "cgroup":
            with failing("make", "cgroup namespace"):
                syscalls.unshare(syscalls.CLONE_NEWCGROUP)
    uts = spec.linux.namespace("uts")
    if spec.hostname and uts is not None:
        with failing("set hostname", spec.hostname):
            socket.sethostname(spec.hostname)
    if spec.domainname and uts is not None:
        with failing("set domain name", spec.domainname):
            syscalls.set_domainname(spec.domainname)
    # Through the host's /proc, which shows the caller's namespaces: the container's own /proc may be forged.
    write_sysctls(spec.linux.sysctl)


def _open_console(rootfs: Rootfs, start: Start, reporter: Reporter) -> tuple[int, int, int]:
    """Open a terminal of the container's devpts as the three standard streams. The shim gets its other end."""
    user, mappings = start.process.user.uid, start.users.mappings
    master = open_multiplexer(lambda flags: syscalls.open_in_root(rootfs.root, "/dev/pts/ptmx", flags))
    with failing("open", "/dev/pts/ptmx"):
        terminal = open_peer(master, start.process, mappings.uid(user) if mappings else user)
    with failing("mount", "/dev/console"):
        # Not through a link of the image, whose target would be covered before it is masked (CVE-2025-52565).
        target = rootfs.open_target("/dev/console", is_directory=False, follow=False)
        tree = syscalls.open_tree(terminal, "", syscalls.AT_EMPTY_PATH | syscalls.OPEN_TREE_CLONE)
        syscalls.move_mount(tree, target)
    if not start.bears:
        take_control(terminal, Passage())
    hand_over(master, reporter)
    return terminal, terminal, terminal
