"""A container in its shim: rootfs, init, exec'd processes, exit status. One state, one place that changes it."""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import re
import select
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

from linux.terminal import resize as resize_terminal
from runtime import validation
from runtime.cgroups import Cgroup, Hierarchies
from runtime.errors import NotRunning, OperationFailed, RuntimeCoreError, failing
from runtime.logs.writer import Clock, LogFile, complain
from runtime.namespaces import user as userns
from runtime.process import users
from runtime.process.clone import clone_into
from runtime.process.hooks import enter_the_container
from runtime.process.init import Start, clock_offsets, clone_flags, container_init
from runtime.process.join import Join
from runtime.rootfs import overlay
from runtime.rootfs.mount_points import check_mount_points
from runtime.rootfs.plan import plan_mounts
from runtime.shim.attach import Attachments
from runtime.shim.execs import Execs
from runtime.shim.hook_process import ContainerHooks
from runtime.shim.reply import Reply
from runtime.shim.stdio import ContainerStdio, Loop, OutputStream
from runtime.spec import values as oci
from runtime.spec.parse import parse, parse_resources
from runtime.wire import calls, reports
from runtime.wire.calls import ContainerStatus, Created, ExitStatus, Updated

_CGROUP_PATIENCE: Final = 2.0  # seconds; the delays up to it double
_PF_EXITING: Final = 0x4  # proc_pid_stat(5), flags; the kernel's sched.h
_NAMESPACE_OF: Final = re.compile(r"/proc/([0-9]+)/ns/[a-z_]+")


class Supervisor(Loop, Protocol):
    """What a container needs of the shim that runs it."""

    def on_exit(self, pid: int, callback: Callable[[int], None]) -> None: ...

    def emit(self, event: calls.Event) -> None: ...

    def later(self, delay: float, callback: Callable[[], None]) -> None: ...

    def uses_cgroup(self, cgroup: Cgroup) -> None: ...

    def record_exit(self, container_id: str, status: ExitStatus) -> None: ...

    def is_child(self, pid: int) -> bool: ...

    def start_holder(self) -> tuple[int, int]: ...

    def command_started(self, pid: int, done: Callable[[int], None]) -> None: ...

    @property
    def empty_mount_namespace(self) -> int: ...

    @property
    def user_namespace(self) -> int: ...


class Container:
    """Created (rootfs mounted), running, exited. Calls answer through a `reply` callback, failures by raising."""

    def __init__(self, container_id: str, bundle: str, supervisor: Supervisor, hierarchies: Hierarchies) -> None:
        self.id = container_id
        self._bundle = bundle
        self._supervisor = supervisor
        self._hierarchies = hierarchies
        self._rootfs = -1
        self._oom_kills_above = 0  # in the cgroup's parent, before the container was in it
        self._holder = -1  # a process in the container's scope until the container's own is there
        self._trees: dict[str, int] = {}
        self._mappings: userns.IDMappings | None = None
        self._spec: oci.Spec | None = None
        self._cgroup: Cgroup | None = None
        self._log: LogFile | None = None
        self._outputs: list[OutputStream] = []
        self._console = -1
        self._stdin = -1
        self._storage = ""  # a directory on disk, the container's own
        self._takes_stdin = False
        self._stdin_once = False
        self._attachments: Attachments | None = None
        self._filter = b""
        self._filter_flags = 0
        self._execs = Execs(supervisor)
        self._exit_waiters: list[Callable[[], None]] = []
        self._start_waiters: list[Reply] = []
        self._early_exit: int | None = None
        self._take_back_update: Callable[[], None] = lambda: None
        self._hooks: ContainerHooks | None = None
        self._killed = False
        self.pause: object = None  # the last `runtime.pause.Pause` that stopped it
        self.pid = 0
        self._pidfd = -1
        self.state = "created"
        self.started_at = 0
        self.exit: ExitStatus | None = None

    # -- created ------------------------------------------------------------------------------------------------------

    def create(self, call: calls.Create) -> Created:
        """Mount the rootfs and the image volumes, and look up the user.

        With `hold` the answer has the pid of a process, too, which waits for a scope to be made around it.
        """
        holder = 0
        self._storage = os.path.dirname(call.upper)
        self._rootfs = self._mount_rootfs(call.lower, call.upper, call.work, call.label)
        try:
            for name, image in call.images.items():
                self._trees[name] = overlay.mount_image(
                    image.lower,
                    image.sub_path,
                    self._supervisor.user_namespace,
                    self._supervisor.empty_mount_namespace,
                )
            check_mount_points(self._rootfs, call.mount_points, self._trees)
            user = call.user
            identity = users.resolve(self._rootfs, user.user, user.group, user.supplemental, merge=user.merge)
            if call.hold:
                holder, self._holder = self._supervisor.start_holder()
        except BaseException:
            self._release()
            raise
        return Created(identity, holder)

    def _mount_rootfs(self, lower: Sequence[str], upper: str, work: str, label: str) -> int:
        users_of_pod = self._supervisor.user_namespace
        if users_of_pod < 0:
            return overlay.mount_overlay(lower, upper, work, label)
        return overlay.mount_mapped_overlay(
            lower, upper, work, users_of_pod, self._supervisor.empty_mount_namespace, label
        )

    def rootfs(self) -> int:
        """The rootfs of one that was created and has not been started; it stays the container's."""
        if self.state != "created" or self._rootfs < 0:
            raise NotRunning(f"open rootfs of container {self.id}: it is {self.state}")
        return self._rootfs

    # -- running ------------------------------------------------------------------------------------------------------

    def start(self, call: calls.Start, fds: Sequence[int], reply: Reply) -> None:
        """Clone the init, for which `fds` may have a seccomp filter. Replies once the program runs, or with why not."""
        begun = time.monotonic_ns()
        spec, process = self._startable()
        validation.check(spec)
        self._mappings = userns.mappings_of(spec)
        self._hooks = ContainerHooks(spec, self.id, self._bundle, self._supervisor)
        mounts = plan_mounts(spec, self._mappings)
        flags = clone_flags(spec)
        self._take_filter(call, fds)
        with contextlib.ExitStack() as undo:
            self._open_log(call, undo)
            cgroup = self._make_cgroup(spec, undo)
            stdio = self._make_streams(call, process, undo)
            namespaces = userns.open_namespaces(spec, self._mappings, [plan.idmap for plan in mounts if plan.idmap])
            undo.callback(namespaces.close)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(ours.close)
            start = Start(
                container_id=self.id,
                spec=spec,
                process=process,
                mounts=mounts,
                rootfs=self._rootfs,
                cgroup=cgroup,
                in_unified_cgroup=bool(cgroup.unified),
                stdio=stdio.child,
                filter_program=self._filter,
                filter_flags=self._filter_flags,
                users=namespaces,
                trees=self._trees,
                trace=call.trace,
                **self._place_of_rootfs(spec),
            )
            if start.trace:
                start.steps += [("shim received", begun)]
                start.step("cgroup made")
            with theirs, failing("clone", "container init"):
                self.pid, self._pidfd = clone_into(
                    cgroup, flags, lambda: container_init(start, reports.Reporter(theirs)), clocks=clock_offsets(spec)
                )
            undo.pop_all()
        start.step("cloned")
        self.state = "starting"
        namespaces.close()
        stdio.close_child_ends()
        self._stdin = stdio.stdin
        outputs = stdio.outputs
        # Nothing is read before the program runs: until then its pipes hold nothing.
        attempt = _StartAttempt(self, ours, start, outputs, reply)
        if start.bears:
            self._supervisor.command_started(self.pid, lambda _status: attempt.take_what_is_there())
        else:
            self._supervisor.on_exit(self.pid, self._init_exited)
        self._supervisor.watch(ours.fileno(), selectors.EVENT_READ, attempt.ready)

    def _born(self, pid: int, pidfd: int) -> None:
        """From now on that process is the container's, which its init has borne in a PID namespace of others."""
        os.close(self._pidfd)
        self.pid, self._pidfd = pid, pidfd
        self._supervisor.on_exit(pid, self._init_exited)
        if self._killed:
            self.kill()

    def _place_of_rootfs(self, spec: oci.Spec) -> dict[str, Any]:
        """In an almost empty mount namespace; in a copy of the host's, below the bundle, where hooks look for it."""
        if not enter_the_container(spec.hooks):
            return {"empty_mount_namespace": self._supervisor.empty_mount_namespace}
        rootfs = os.path.join(self._bundle, spec.root.path)
        with failing("make", rootfs):
            os.makedirs(rootfs, 0o700, exist_ok=True)
        return {"empty_mount_namespace": -1, "attach_point": rootfs}

    def _startable(self) -> tuple[oci.Spec, oci.Process]:
        """What config.json says, now. Raises RuntimeCoreError for what cannot be started."""
        if self.state != "created":
            raise RuntimeCoreError(f"start container {self.id}: it is {self.state}")
        with open(os.path.join(self._bundle, "config.json"), "rb") as file:
            spec = parse(json.load(file))
        if spec.process is None:
            raise RuntimeCoreError("config.json: process: missing")
        self._require_living_namespaces(spec)
        self._spec = spec
        return spec, spec.process

    def _open_log(self, call: calls.Start, undo: contextlib.ExitStack) -> None:
        try:
            self._log = LogFile(call.log, call.log_trusted)
        except OSError as error:
            raise RuntimeCoreError(f"open log: {error.strerror}") from error
        undo.callback(self._close_log)

    def _make_cgroup(self, spec: oci.Spec, undo: contextlib.ExitStack) -> Cgroup:
        cgroup = Cgroup.at(self._hierarchies, spec.linux.cgroups_path)
        self._supervisor.uses_cgroup(cgroup)
        cgroup.create(spec.linux.resources)
        self._cgroup = cgroup
        undo.callback(self._remove_cgroup)
        self._oom_kills_above = cgroup.oom_kills_above()
        return cgroup

    def _make_streams(
        self, call: calls.Start, process: oci.Process, undo: contextlib.ExitStack
    ) -> ContainerStdio:
        self._takes_stdin = call.stdin
        # A terminal's input has no end: kubectl attaches again to one it said stdin_once of.
        self._stdin_once = call.stdin_once and not process.terminal
        stdio = ContainerStdio.make(terminal=process.terminal, stdin=self._takes_stdin)
        undo.callback(stdio.close)
        return stdio

    def _take_filter(self, call: calls.Start, fds: Sequence[int]) -> None:
        if call.filter_bytes:
            self._filter = os.pread(fds[0], call.filter_bytes, 0)
        else:
            self._filter = base64.b64decode(call.filter)
        if len(self._filter) < call.filter_bytes:
            raise RuntimeCoreError("read seccomp filter: it is cut short")
        self._filter_flags = call.filter_flags

    def _require_living_namespaces(self, spec: oci.Spec) -> None:
        """Refuse namespaces of processes that are gone: since config.json was written their numbers may be others'."""
        for namespace in spec.linux.namespaces:
            holder = _NAMESPACE_OF.fullmatch(namespace.path)
            if holder and not self._supervisor.is_child(int(holder[1])):
                raise OperationFailed(f"join {namespace.type} namespace", namespace.path, errno.ESRCH)

    def _started(self, outputs: Sequence[tuple[int, str]], console: int) -> None:
        assert self._log is not None
        clock = Clock()
        if console >= 0:
            outputs = [(os.dup(console), "stdout")]
            self._console = console
            self._stdin = os.dup(console) if self._takes_stdin else -1
        self._outputs = [OutputStream(fd, name, self._log, clock, self._supervisor) for fd, name in outputs]
        stdin, self._stdin = self._stdin, -1
        self._attachments = Attachments(
            self._outputs, stdin, self._storage, self._supervisor, stdin_once=self._stdin_once
        )
        self._drop_holder()
        self.state = "running"
        self.started_at = time.time_ns()
        self._tell_start()

    def _tell_start(self) -> None:
        waiters, self._start_waiters = self._start_waiters, []
        for reply in waiters:
            reply(self.describe())

    def _exited_meanwhile(self) -> None:
        if self._early_exit is not None:
            self._init_exited(self._early_exit)

    def _start_failed(self, outputs: Sequence[tuple[int, str]]) -> None:
        for fd, _name in outputs:
            os.close(fd)
        self.state = "exited"
        self.exit = ExitStatus(calls.START_FAILED, finished_at=time.time_ns(), start_failed=True)
        self._supervisor.record_exit(self.id, self.exit)
        self._remove_cgroup()
        self._close_log()
        self._release()
        self._tell_start()
        self._tell_exit()

    # -- exited -------------------------------------------------------------------------------------------------------

    def _init_exited(self, status: int) -> None:
        if self.state == "starting":
            self._early_exit = status  # told again once the end of the start is known
        if self.state != "running":
            return
        assert self._spec is not None
        assert self._cgroup is not None
        if not self._has_own_pid_namespace():
            # The kernel ends only a PID namespace with its init; what init left in a shared one is ours to end.
            with contextlib.suppress(RuntimeCoreError):
                self._cgroup.kill()
        for output in self._outputs:
            output.drain()
        self._outputs = []
        signal_number = -status if status < 0 else 0
        self.exit = ExitStatus(
            code=128 + signal_number if signal_number else status,
            signal=signal_number,
            oom=self._was_oom_killed(signal_number),
            finished_at=time.time_ns(),
        )
        self.state = "exited"
        self._supervisor.record_exit(self.id, self.exit)
        self._close_log()
        self._remove_cgroup()
        self._release()
        assert self._attachments is not None
        self._attachments.exited(self.exit.code)
        self._tell_exit()
        self._supervisor.emit(calls.Exited(self.id, self.exit))

    def _tell_exit(self) -> None:
        waiters, self._exit_waiters = self._exit_waiters, []
        for exited in waiters:
            exited()

    def _was_oom_killed(self, signal_number: int) -> bool:
        assert self._cgroup is not None
        if self._cgroup.oom_kills() > 0:
            return True
        # systemd may be quicker to remove the empty scope, and its count with it. The slice has counted, too.
        killed = signal_number == signal.SIGKILL and self._cgroup.is_gone()
        return killed and self._cgroup.oom_kills_above() > self._oom_kills_above

    def _has_own_pid_namespace(self) -> bool:
        namespace = self._spec.linux.namespace("pid") if self._spec else None
        return namespace is not None and not namespace.path

    def signal(self, number: int) -> None:
        """Send a signal to init; nothing happens when it is gone."""
        if self.state == "running":
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """End every process of the container."""
        self._killed = True
        if self.pid and self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        if self._cgroup is not None and self.state != "exited":
            with contextlib.suppress(RuntimeCoreError):
                self._cgroup.kill_in_pod()

    def wait(self, exited: Callable[[], None]) -> None:
        """Call back when the container has exited."""
        if self.exit is not None:
            exited()
        else:
            self._exit_waiters.append(exited)

    def wait_start(self, reply: Reply) -> None:
        """Reply with what `describe` tells when no start is under way."""
        if self.state == "starting":
            self._start_waiters.append(reply)
        else:
            reply(self.describe())

    def update(self, call: calls.Update) -> Updated:
        """Change the limits of a running container, all or none; one that has exited needs none."""
        if self.state == "exited":
            return Updated()
        if self.state != "running" or self._cgroup is None:
            raise RuntimeCoreError(f"update container {self.id}: it is {self.state}")
        if call.resources is None:
            self._take_back_update()
            return Updated()
        try:
            take_back = self._cgroup.update(parse_resources(call.resources))
        except RuntimeCoreError:
            if self._is_over():
                return Updated()
            raise
        if not call.again:
            self._take_back_update = take_back
        return self._set_oom_score(call.oom_score_adj)

    def _set_oom_score(self, score: int) -> Updated:
        assert self._spec is not None
        assert self._spec.process is not None
        assert self._cgroup is not None
        if not score or score == self._spec.process.oom_score_adj:
            return Updated()
        self._spec = replace(self._spec, process=replace(self._spec.process, oom_score_adj=score))  # for later execs
        if self._cgroup.set_oom_score_adj(score):
            return Updated()
        return Updated((f"oom_score_adj {score} needs CAP_SYS_RESOURCE, which crisp lacks: kept as it is",))

    def freeze(self) -> None:
        """Stop every process. Raises RuntimeCoreError unless it runs."""
        if self.state != "running" or self._cgroup is None:
            raise NotRunning(f"freeze container {self.id}: it is {self.state}")
        self._cgroup.freeze()

    def thaw(self) -> None:
        """Let them go on. Raises RuntimeCoreError."""
        if self.state == "running" and self._cgroup is not None:
            self._cgroup.thaw()

    def reopen_log(self) -> None:
        if self._log is not None:
            try:
                self._log.reopen()
            except OSError as error:
                raise RuntimeCoreError(error.strerror or "") from error

    def delete(self) -> None:
        """Let go of all that is left. The container is not running."""
        self._execs.forget_unclaimed()
        if self._hooks is not None:
            self._hooks.begin_poststop()
            self._hooks = None
        self._remove_cgroup()
        self._close_log()
        self._release()

    def describe(self) -> ContainerStatus:
        return ContainerStatus(self.state, self.pid, self.started_at, self.exit)

    # -- exec ---------------------------------------------------------------------------------------------------------

    def execute(self, call: calls.Exec, fds: Sequence[int], reply: Reply) -> None:
        """Run another process with `fds` as its streams. Replies with its exit code when it ends."""
        if self.state != "running" or self._spec is None or self._cgroup is None:
            raise NotRunning(f"exec in container {self.id}: it is not running")
        if self._cgroup.is_frozen():
            raise NotRunning(f"exec in container {self.id}: it is paused")
        assert self._spec.process is not None
        terminal = call.terminal
        process = replace(self._spec.process, args=call.args, terminal=terminal, console_size=None)
        if terminal:
            process = replace(process, env=oci.with_term(process.env))
        try:
            join = Join(
                container_id=self.id,
                spec=self._spec,
                process=process,
                init_pidfd=self._pidfd,
                cgroup=self._cgroup.for_exec(self.pid),
                in_unified_cgroup=bool(self._cgroup.unified),
                stdio=(-1, -1, -1) if terminal else (fds[0], fds[1], fds[2]),
                filter_program=self._filter,
                filter_flags=self._filter_flags,
                mappings=self._mappings,
            )
            self._execs.begin(call.exec, join, self.unless_over(reply))
        except (RuntimeCoreError, OSError) as error:
            if self._is_over():
                raise self._over() from error
            raise

    def unless_over(self, reply: Reply) -> Reply:
        """`reply`, but for failures of an exec whose container ended meanwhile: that is the reason then."""

        def answer(result: calls.Answer | RuntimeCoreError) -> None:
            reply(self._over() if isinstance(result, RuntimeCoreError) and self._is_over() else result)

        return answer

    def _over(self) -> NotRunning:
        return NotRunning(f"exec in container {self.id}: it has just ended")

    def _is_over(self) -> bool:
        """Whether init is dead or dying, though the loop may not have come to hear of it."""
        if self.state != "running" or self._pidfd < 0:
            return True
        dead = select.poll()
        dead.register(self._pidfd, select.POLLIN)
        return bool(dead.poll(0)) or _is_exiting(self.pid)

    def wait_exec_running(self, key: str, reply: Reply) -> None:
        """Reply once the exec'd program runs, or has ended, with the other end of its terminal if it has one."""
        self._execs.wait_running(key, reply)

    def kill_exec(self, key: str) -> None:
        """SIGKILL an exec'd process and all it started, daemonised children of its session included."""
        self._execs.kill(key, self._cgroup)

    # -- attach -------------------------------------------------------------------------------------------------------

    def attach(self, call: calls.Attach, fds: Sequence[int], reply: Reply) -> None:
        """Attach a client; `fds` are for what `streams` names. Replies when it is detached, or the container ends."""
        if self.state != "running" or self._attachments is None:
            raise NotRunning(f"attach to container {self.id}: it is not running")
        self._attachments.attach(call.attach, dict(zip(call.streams, fds, strict=True)), reply)

    def detach(self, name: str) -> None:
        if self._attachments is not None:
            self._attachments.detach(name)

    def resize(self, width: int, height: int) -> None:
        """Set the size of the container's terminal, if it has one."""
        if self._console >= 0:
            with failing("resize terminal of", self.id):
                resize_terminal(self._console, width, height)

    # -- resources ----------------------------------------------------------------------------------------------------

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def _remove_cgroup(self, *, delay: float = 0.002) -> None:
        if self._cgroup is None:
            return
        try:
            self._cgroup.remove()
        except RuntimeCoreError as error:
            # Dying processes leave a cgroup a moment after their parent was told.
            if delay < _CGROUP_PATIENCE:
                self._supervisor.later(delay, lambda: self._remove_cgroup(delay=2 * delay))
            else:
                complain(f"container {self.id}: {error}")
            return
        self._cgroup = None

    def _drop_holder(self) -> None:
        if self._holder >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._holder, signal.SIGKILL)
            os.close(self._holder)
            self._holder = -1

    def _release(self) -> None:
        self._drop_holder()
        userns.close_all(self._trees.values())
        self._trees = {}
        for attribute in ("_rootfs", "_pidfd", "_console", "_stdin"):
            fd = getattr(self, attribute)
            if fd >= 0:
                os.close(fd)
                setattr(self, attribute, -1)


class _StartAttempt:
    """The conversation with one init between clone and execve, which closes the channel."""

    def __init__(
        self, container: Container, channel: socket.socket, start: Start, outputs: list[tuple[int, str]], reply: Reply
    ) -> None:
        self._container = container
        self._channel = channel
        self._start = start
        self._outputs = outputs
        self._reply = reply
        self._conversation = reports.Conversation(reports.INIT, bears=start.bears)
        self._console = -1
        self._hook_failure: RuntimeCoreError | None = None
        self._warnings: list[str] = []

    def take_what_is_there(self) -> None:
        """Take what the init has said that is to bear the program, without waiting for more."""
        while self._conversation.awaits_birth and self._channel.fileno() >= 0 and self._take_one():
            pass

    def ready(self, _events: int) -> None:
        self._take_one()

    def _take_one(self) -> bool:
        """Take one message, if there is one, or the end of them, at which the program runs or never will."""
        try:
            report = reports.receive(self._channel, self._conversation, wait=False)
        except BlockingIOError:
            return False
        self._take(report)
        return True

    def _ended(self) -> None:
        supervisor = self._container._supervisor
        supervisor.unwatch(self._channel.fileno())
        self._channel.close()
        failure = self._hook_failure or self._conversation.outcome
        if failure is None:
            try:
                self._container._started(self._outputs, self._console)
            except OSError as error:
                self._container.kill()
                failure = OperationFailed.of("watch output of", self._container.id, error)
        if failure is not None:
            if self._console >= 0:
                os.close(self._console)
            self._container._start_failed(self._outputs)
            self._reply(failure)
            return
        assert self._container._hooks is not None
        self._container._hooks.begin_poststart(self._container.pid, self._finish)
        self._container._exited_meanwhile()

    def _finish(self, failure: RuntimeCoreError | None) -> None:
        """Answer. A container whose poststart hooks failed is ended, and was not started."""
        if failure is not None:
            self._container.kill()
            self._container.wait(lambda: self._reply(failure))
            return
        if self._start.trace:
            self._start.step("program runs")
        steps = tuple(self._start.steps) if self._start.trace else ()
        container = self._container
        self._reply(calls.Started(container.pid, container.started_at, tuple(self._warnings), steps))

    def _take(self, report: reports.Report | reports.Ended | None) -> None:
        match report:
            case reports.Ended():
                self._ended()
            case reports.Executing(steps):
                self._start.steps.extend(steps)
            case reports.Born(pid, pidfd):
                self._container._born(pid, pidfd)
            case reports.Console(master):
                self._console = master
            case reports.Warned(text):
                self._warnings.append(text)
            case reports.HooksDue():
                assert self._container._hooks is not None
                self._container._hooks.begin_creation(self._container.pid, self._created)

    def _created(self, state: dict[str, Any], failure: RuntimeCoreError | None) -> None:
        """The hooks of the creation have ended: let the init go on with this state, or end it."""
        if self._channel.fileno() < 0:  # it has died meanwhile
            return
        if failure is not None:
            self._hook_failure = failure
            self._container.kill()
            return
        with contextlib.suppress(OSError):
            reports.answer(self._channel, state)


def _is_exiting(pid: int) -> bool:
    """Whether a process is on its way out. Its PID namespace takes nobody any more then (ENOMEM), and it has no others
    left (ESRCH), but its end cannot be waited for before all in that namespace are gone.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            flags = int(file.read().rsplit(b") ", 1)[1].split()[6])
    except OSError:
        return True
    return bool(flags & _PF_EXITING)
