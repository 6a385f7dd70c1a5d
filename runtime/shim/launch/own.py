"""Starts crisp's own containers: the shim clones their init."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from linux.user_namespaces import STARTED_IN_ONE
from runtime import validation
from runtime.cgroups import Cgroup
from runtime.errors import RuntimeCoreError, failing
from runtime.light import contextlib, replace, socket
from runtime.namespaces import netdevices
from runtime.namespaces import user as userns
from runtime.process.clone import clone_into
from runtime.process.hooks import enter_the_container
from runtime.process.init import Start, clock_offsets, clone_flags, container_init
from runtime.process.starting import NO_STREAMS, InitList
from runtime.rootfs.host_trees import host_trees
from runtime.rootfs.plan import MountPlan, plan_mounts
from runtime.shim.holdings import Holdings
from runtime.shim.hook_process import ContainerHooks
from runtime.shim.launch.attempt import Attempt, Steps
from runtime.shim.launch.commands import JoiningCommands
from runtime.shim.launch.filters import filter_of
from runtime.shim.loop import READ
from runtime.shim.planner import Asked
from runtime.spec import values as oci
from runtime.wire import calls, reports


class OwnLauncher:
    """Clones a container's init. For what the init does see `runtime.process.init`."""

    fills_cgroup = True

    def __init__(self, held: Holdings) -> None:
        self._held = held
        self.commands = JoiningCommands(held)
        self._checked: oci.Spec | None = None  # what the next two are of
        self._mounts: list[MountPlan] | None = None
        self._clone_flags = 0
        self._asked: Asked | None = None
        self._ahead: InitList | None = None

    def place(self) -> None:
        """Do nothing: the init attaches the rootfs in the container's mount namespace."""

    def prepare(self, call: calls.Prepare, fds: Sequence[int]) -> None:
        """Make the cgroup; meanwhile the planner makes the init's list, if it has one."""
        held = self._held
        self._forget_list()
        spec, process = held.read_spec(ahead=True)
        self._check(spec)
        held.filter, held.filter_flags = filter_of(call, fds)
        cgroup = Cgroup.at(held.hierarchies, spec.linux.cgroups_path)
        if held.mappings is None and held.supervisor.script_runner.can_run:
            start = self._start(spec, process, cgroup, userns.UserNamespaces(), -1, {})
            self._asked = held.supervisor.planner.ask(start, [] if call.stdin else [0], held.content)
        held.make_cgroup(spec.linux.cgroups_path, spec.linux.resources)

    def plan(self, call: calls.Start, _process: oci.Process, fds: Sequence[int]) -> None:
        held = self._held
        assert held.spec is not None
        self._check(held.spec)
        if self._asked is not None:
            asked, self._asked = self._asked, None
            self._ahead = asked.list()
        if self._has_no_list():
            self._plan_mounts()
        held.hooks = ContainerHooks(held.spec, held.id, held.bundle, held.supervisor)
        held.filter, held.filter_flags = filter_of(call, fds)

    def _check(self, spec: oci.Spec) -> None:
        if self._checked is spec:
            return
        self._forget_list()
        self._checked, self._mounts = None, None
        validation.check(spec)
        self._held.mappings = userns.mappings_of(spec)
        self._clone_flags = clone_flags(spec)
        self._checked = spec

    def _plan_mounts(self) -> list[MountPlan]:
        assert self._checked is not None
        if self._mounts is None:
            self._mounts = plan_mounts(self._checked, self._held.mappings)
        return self._mounts

    def _has_no_list(self) -> bool:
        return self._ahead is None or self._ahead.program is None

    def _forget_list(self) -> None:
        """Forget the list made ahead, and wait for who may be making it, who looks into the rootfs."""
        if self._asked is not None:
            self._asked.list()
        self._asked = self._ahead = None

    def launch(self, attempt: Attempt, undo: contextlib.ExitStack) -> None:
        """Clone the init."""
        held = self._held
        assert held.spec is not None
        cgroup = held.make_cgroup(held.spec.linux.cgroups_path, held.spec.linux.resources, undo)
        # With such mounts there is no list.
        mapped = [plan.idmap for plan in self._plan_mounts() if plan.idmap] if self._has_no_list() else []
        namespaces = userns.open_namespaces(held.spec, held.mappings, mapped)
        undo.callback(namespaces.close)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.callback(ours.close)
        with theirs, _links(held.spec) as links, _host_trees(held.spec) as trees:
            start = self._start(held.spec, attempt.process, cgroup, namespaces, links, trees)
            start.stdio, start.trace = attempt.stdio.child, attempt.call.trace
            if start.trace:
                start.steps += [("shim received", attempt.received)]
                start.step("cgroup made")
            listening = Listening(held, ours, start, attempt)
            with failing("watch", "container init"):
                # Before there is a process: the kernel may refuse it, and nobody would hear of the init.
                held.supervisor.watch(ours.fileno(), READ, listening.ready)
            undo.callback(held.supervisor.unwatch, ours.fileno())
            process = self._by_list(start, ours, theirs, listening)
            if process is not None:
                start.step("list sent")
            else:
                process = self._by_fork(start, theirs)
        start.step("cloned")
        namespaces.close()
        listening.follow(*process)

    def _by_fork(self, start: Start, theirs: socket.socket) -> tuple[int, int]:
        start = replace(start, mounts=self._plan_mounts())
        with failing("clone", "container init"):
            return clone_into(
                start.cgroup,
                self._clone_flags,
                lambda: container_init(start, reports.Reporter(theirs)),
                clocks=clock_offsets(start.spec),
            )

    def _by_list(
        self, start: Start, ours: socket.socket, theirs: socket.socket, listening: Listening
    ) -> tuple[int, int] | None:
        """Start the init as a list of system calls. None if there is none for it, and then there is no process."""
        runner = self._held.supervisor.script_runner
        if not runner.can_run:
            return None
        made, self._ahead = self._ahead, None
        if made is None or not made.is_of(start):
            made = InitList.of(replace(start, mounts=self._plan_mounts()))
        if made.program is None:
            return None
        descriptors = (*start.stdio, theirs.fileno(), *made.descriptors)
        started = runner.start(made.program.image, ours, descriptors, "crisp-init", start.container_id)
        if started is not None:
            listening.is_told_by_list(made.births, made.program.failure)
        return started

    def _start(
        self,
        spec: oci.Spec,
        process: oci.Process,
        cgroup: Cgroup,
        namespaces: userns.UserNamespaces,
        links: int,
        host_trees: Mapping[str, int],
    ) -> Start:
        """Return all of a start but its streams and its mounts."""
        held = self._held
        return Start(
            container_id=held.id,
            spec=spec,
            process=process,
            mounts=(),
            rootfs=held.rootfs,
            cgroup=cgroup,
            in_unified_cgroup=bool(cgroup.unified),
            stdio=NO_STREAMS,
            filter_program=held.filter,
            filter_flags=held.filter_flags,
            users=namespaces,
            trees=held.trees,
            directories=self._directories(spec),
            links=links,
            host_trees=host_trees,
            **self._place_of_rootfs(spec),
        )

    def _directories(self, spec: oci.Spec) -> dict[str, bool]:
        """Return which bind mounts are of a directory and which are not: crispd's, and those of the pod's own files.

        Others are not looked at: the server of a volume may not answer.
        """
        known = {(mount.destination, mount.source): mount.directory for mount in self._held.mount_points}
        own = self._held.supervisor.pod_directory + "/"
        found = {}
        for mount in spec.mounts:
            if (mount.destination, mount.source) in known:
                found[mount.destination] = known[mount.destination, mount.source]
            elif mount.source.startswith(own):
                found[mount.destination] = os.path.isdir(mount.source)
        return found

    def _place_of_rootfs(self, spec: oci.Spec) -> dict[str, Any]:
        """Return where the init attaches the rootfs: in an empty mount namespace, or with hooks below the bundle.

        In a user namespace it is there, too, because only beside a visible proc another one can be mounted.
        """
        if not enter_the_container(spec.hooks) and not STARTED_IN_ONE:
            return {"empty_mount_namespace": self._held.supervisor.empty_mount_namespace}
        rootfs = os.path.join(self._held.bundle, spec.root.path)
        with failing("make", rootfs):
            os.makedirs(rootfs, 0o700, exist_ok=True)
        return {"empty_mount_namespace": -1, "attach_point": rootfs}

    def succeed(self, ended: Callable[[int], None] | None) -> None:
        if ended is not None:
            self.commands.succeed()
            self._held.follow_init(ended)

    def signal(self, number: int) -> None:
        self._held.signal_init(number)

    def kill(self) -> None:
        self._held.kill()

    def release(self) -> None:
        self._forget_list()

    def when_released(self, callback: Callable[[], None]) -> None:
        callback()


@contextlib.contextmanager
def _host_trees(spec: oci.Spec) -> Iterator[Mapping[str, int]]:
    """Clone the host's devices and /sys if we can make neither, being in a user namespace."""
    trees = host_trees(device.path for device in spec.linux.devices) if STARTED_IN_ONE else {}
    try:
        yield trees
    finally:
        userns.close_all(trees.values())


@contextlib.contextmanager
def _links(spec: oci.Spec) -> Iterator[int]:
    """Open the source of interfaces for the container: the host's network namespace, the shim's. -1 if not needed."""
    if not spec.linux.net_devices:
        yield -1
        return
    links = netdevices.open_links()
    try:
        yield links
    finally:
        os.close(links)


class Listening:
    """The shim's side of the conversation with an init, from the clone to the execve, which closes the channel."""

    def __init__(self, held: Holdings, channel: socket.socket, start: Start, attempt: Attempt) -> None:
        self._held = held
        self._channel = channel
        self._start = start
        self._attempt = attempt
        self._conversation = reports.Conversation(reports.INIT, bears=start.bears)
        self._console = -1
        self._hook_failure: RuntimeCoreError | None = None
        self._warnings: list[str] = []

    def is_told_by_list(self, births: int, undone: Callable[[reports.Undone], RuntimeCoreError]) -> None:
        """Expect the reports of a list of system calls."""
        self._conversation = reports.Conversation(reports.INIT, bears=births, undone=undone)

    def follow(self, pid: int, pidfd: int) -> None:
        """Follow the process that runs the program, or that clones the one which does."""
        if not self._conversation.awaits_birth:
            self._attempt.adopt(pid, pidfd)
            return
        self._held.take_init(pid, pidfd)
        self._held.supervisor.command_started(pid, lambda _status: self.take_what_is_there())
        if self._attempt.killed:
            self._attempt.kill()

    def take_what_is_there(self) -> None:
        """Read the reports of an init that has cloned the program, as far as they have arrived."""
        while self._conversation.awaits_birth and self._channel.fileno() >= 0 and self._take_one():
            pass

    def ready(self, _events: int) -> None:
        self._take_one()

    def _take_one(self) -> bool:
        """Read one report, if there is one. At end of file the program runs, or never will."""
        try:
            report = reports.receive(self._channel, self._conversation, wait=False)
        except BlockingIOError:
            return False
        self._take(report)
        return True

    def _take(self, report: reports.Report | reports.Ended | None) -> None:
        match report:
            case reports.Ended():
                self._ended()
            case reports.Executing(steps):
                self._start.steps.extend(steps)
            case reports.Born(pid, pidfd):
                self.follow(pid, pidfd)
            case reports.Console(master):
                self._console = master
            case reports.Warned(text):
                self._warnings.append(text)
            case reports.HooksDue():
                assert self._held.hooks is not None
                self._held.hooks.begin_creation(self._held.pid, self._created)

    def _created(self, state: dict[str, Any], failure: RuntimeCoreError | None) -> None:
        """Let the init continue with this state after the creation hooks, or end it if one failed."""
        if self._channel.fileno() < 0:  # the init has died meanwhile
            return
        if failure is not None:
            self._hook_failure = failure
            self._attempt.kill()
            return
        with contextlib.suppress(OSError):
            reports.answer(self._channel, state)

    def _ended(self) -> None:
        self._held.supervisor.unwatch(self._channel.fileno())
        self._channel.close()
        failure = self._hook_failure or self._conversation.outcome
        if failure is None:
            # Start reading the output only now: before the program runs there is none.
            self._attempt.succeed(self._console, self._warnings, self._steps)
            return
        if self._console >= 0:
            os.close(self._console)
        self._attempt.fail(failure)

    def _steps(self) -> Steps:
        if not self._start.trace:
            return ()
        self._start.step("program runs")
        return tuple(self._start.steps)
