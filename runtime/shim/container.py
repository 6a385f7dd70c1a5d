"""Manages a container in its shim: rootfs, init, execs, exit status."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from linux import syscalls
from linux.terminal import resize as resize_terminal
from runtime.errors import NotRunning, RuntimeCoreError, failing
from runtime.light import contextlib, replace
from runtime.logs.writer import Clock, LogFile
from runtime.shim.attach import Attachments
from runtime.shim.estates import ContainerEstate, container_key
from runtime.shim.holdings import Holdings
from runtime.shim.launch.attempt import Attempt
from runtime.shim.launch.launcher import Launcher
from runtime.shim.reply import Reply
from runtime.shim.stdio import ContainerStdio, OutputStream
from runtime.spec import values as oci
from runtime.spec.parse import parse_resources
from runtime.wire import calls
from runtime.wire.calls import ContainerStatus, Created, ExitStatus, Updated
from runtime.wire.states import EXITED, RUNNING, STARTING, StateMachine

_PF_EXITING: Final = 0x4  # proc_pid_stat(5), flags; the kernel's sched.h


class Container:
    """A container. `runtime.wire.states` draws its life cycle. Calls answer by a `reply` callback, or raise.

    Its launcher makes its processes.
    """

    def __init__(self, held: Holdings, launcher: Launcher) -> None:
        self.id = held.id
        self._create: calls.Create | None = None
        self._call: calls.Start | None = None
        self._held = held
        self._launcher = launcher
        self._supervisor = held.supervisor
        self._log: LogFile | None = None
        self._logged = calls.Logged()  # until the log was closed
        self._outputs: list[OutputStream] = []
        self._console = -1
        self._stdin = -1
        self._storage = ""  # the container's directory on disk
        self._takes_stdin = False
        self._stdin_once = False
        self._attachments: Attachments | None = None
        self._oom_score_adj = 0  # as changed since the start
        self._exit_waiters: list[Callable[[], None]] = []
        self._start_waiters: list[Reply] = []
        self._early_exit: int | None = None
        self._revert_update: Callable[[], None] = lambda: None
        self.killed = False
        self.pause: object = None  # the last `runtime.shim.pause.Pause` that froze it
        self.state = StateMachine()
        self.started_at = 0
        self.exit: ExitStatus | None = None

    # -- created ------------------------------------------------------------------------------------------------------

    def create(self, call: calls.Create) -> Created:
        """Mount the rootfs and the image volumes, and look up the user.

        With `hold` the answer also has the pid of a placeholder process for a systemd scope.
        """
        self._take(call)
        try:
            self._held.mount(call)
            identity = self._held.find_user(call)
            self._launcher.place()
            holder = self._held.hold_scope() if call.hold else 0
        except BaseException:
            self._release()
            raise
        self.deposit()
        return Created(identity, holder)

    def _take(self, call: calls.Create) -> None:
        self._create = call
        self._storage = os.path.dirname(call.upper)

    def rootfs(self) -> int:
        """Return the rootfs of a container that was not started. It stays the container's."""
        if not self.state.can_start or self._held.rootfs < 0:
            raise NotRunning(f"open rootfs of container {self.id}: it is {self.state.name}")
        return self._held.rootfs

    def prepare(self, call: calls.Prepare, fds: Sequence[int]) -> None:
        """Work ahead for the start; `fds` came with the call. What fails here, the start reports."""
        if self.state.can_start:
            self._launcher.prepare(call, fds)

    # -- running ------------------------------------------------------------------------------------------------------

    def start(self, call: calls.Start, fds: Sequence[int], reply: Reply) -> None:
        """Run the program; `fds` came with the call. Replies when it runs, or with the error if it cannot."""
        if not self.state.can_start:
            raise RuntimeCoreError(f"start container {self.id}: it is {self.state.name}, not created")
        received = time.monotonic_ns()
        _spec, process = self._held.read_spec()
        self._launcher.plan(call, process, fds)
        with contextlib.ExitStack() as undo:
            self._open_log(call, undo)
            stdio = self._make_streams(call, process, undo)
            self._launcher.launch(Attempt(self, self._held, call, process, stdio, received, reply), undo)
            undo.pop_all()
        self.state.become(STARTING)
        self._call = replace(call, filter="")
        stdio.close_child_ends()
        self._stdin = stdio.stdin

    def _open_log(self, call: calls.Start, undo: contextlib.ExitStack) -> None:
        try:
            self._log = _log_of(call)
        except OSError as error:
            raise RuntimeCoreError(f"open log: {error.strerror}") from error
        undo.callback(self._close_log)

    def _make_streams(self, call: calls.Start, process: oci.Process, undo: contextlib.ExitStack) -> ContainerStdio:
        self._takes_stdin = call.stdin
        # A terminal's input has no end: kubectl attaches again although it asked for stdin_once.
        self._stdin_once = call.stdin_once and not process.terminal
        stdio = ContainerStdio.make(terminal=process.terminal, stdin=self._takes_stdin)
        undo.callback(stdio.close)
        return stdio

    def started(self, outputs: Sequence[tuple[int, str]], console: int) -> None:
        """Note that the program runs, with these outputs or that terminal. Raises OSError."""
        self._console = console
        if console >= 0:
            outputs = [(os.dup(console), "stdout")]
            self._stdin = os.dup(console) if self._takes_stdin else -1
        self._follow_streams(outputs)
        if self._launcher.fills_cgroup:
            self._held.leave_scope()
        self.state.become(RUNNING)
        self.started_at = time.time_ns()
        self.deposit()
        self._tell_start()

    def _follow_streams(
        self, outputs: Sequence[tuple[int, str]], places: Mapping[str, int] | None = None
    ) -> None:
        """`places`: those that an earlier shim's streams have in the journal."""
        assert self._log is not None
        clock, journal = Clock(), self._supervisor.journal
        self._log.writing = journal.writing
        self._outputs = [
            OutputStream(
                fd, name, self._log, clock, self._supervisor, journal, None if places is None else places.get(name, -1)
            )
            for fd, name in outputs
        ]
        stdin, self._stdin = self._stdin, -1
        self._attachments = Attachments(
            self._outputs,
            stdin,
            self._storage,
            self._supervisor,
            stdin_once=self._stdin_once,
            stdin_closed=self.deposit,
        )
        self._log.renewed = self.deposit

    def _tell_start(self) -> None:
        waiters, self._start_waiters = self._start_waiters, []
        for reply in waiters:
            reply(self.describe())

    def exited_meanwhile(self) -> None:
        """Handle an exit that came during the start, now that the start's result is reported."""
        if self._early_exit is not None:
            self.init_exited(self._early_exit)

    def start_failed(self, outputs: Sequence[tuple[int, str]]) -> None:
        """Note that the program will not run, and release everything."""
        for fd, _name in outputs:
            os.close(fd)
        self.state.become(EXITED)
        self.exit = ExitStatus(calls.START_FAILED, finished_at=time.time_ns(), start_failed=True)
        self._supervisor.record_exit(self.id, self.exit)
        self._held.remove_cgroup()
        self._close_log()
        self._release()
        self.deposit()
        self._tell_start()
        self._tell_exit()

    # -- exited -------------------------------------------------------------------------------------------------------

    def init_exited(self, status: int) -> None:
        """Handle the init's exit: `status` is its exit code, or minus the signal."""
        if self.state.is_starting:
            self._early_exit = status  # handled again when the start's result is known
        if not self.state.can_exec:
            return
        assert self._held.cgroup is not None
        if not self._held.has_own_pid_namespace():
            # Only a PID namespace ends with its init. In a shared one we must end the container's other processes.
            with contextlib.suppress(RuntimeCoreError):
                self._held.cgroup.kill()
        self._drain()
        signal_number = -status if status < 0 else 0
        exit_status = ExitStatus(
            code=128 + signal_number if signal_number else status,
            signal=signal_number,
            oom=self._held.was_oom_killed(signal_number),
            finished_at=time.time_ns(),
        )
        self._supervisor.record_exit(self.id, exit_status)
        self._ended(exit_status)

    def _drain(self) -> None:
        for output in self._outputs:
            output.drain()
        self._outputs = []

    def _ended(self, status: ExitStatus) -> None:
        """Release everything, and tell of the exit, which is on disk."""
        self.exit = status
        self.state.become(EXITED)
        self._close_log()
        self._held.remove_cgroup()
        self._release()
        assert self._attachments is not None
        self._attachments.exited(status.code)
        self.deposit()
        self._tell_exit()
        self._supervisor.emit(calls.Exited(self.id, status, self._logged))

    def _tell_exit(self) -> None:
        waiters, self._exit_waiters = self._exit_waiters, []
        for exited in waiters:
            exited()

    def signal(self, number: int) -> None:
        """Send a signal to the init. Does nothing if it is gone."""
        if self.state.can_exec:
            self._launcher.signal(number)

    def kill(self) -> None:
        """Kill every process of the container."""
        self.killed = True
        if not self.state.is_over:
            self._launcher.kill()

    def _require_running(self, operation: str) -> None:
        if not self.state.can_exec:
            raise NotRunning(f"{operation} container {self.id}: it is {self.state.name}, not running")

    def wait(self, exited: Callable[[], None]) -> None:
        """Call back when the container has exited."""
        if self.exit is not None:
            exited()
        else:
            self._exit_waiters.append(exited)

    def wait_start(self, reply: Reply) -> None:
        """Reply with `describe()` as soon as no start is in progress."""
        if self.state.is_starting:
            self._start_waiters.append(reply)
        else:
            reply(self.describe())

    def update(self, call: calls.Update) -> Updated:
        """Change the limits of a running container, all or none. Does nothing for one that has exited."""
        if self.state.is_over:
            return Updated()
        self._require_running("update")
        assert self._held.cgroup is not None
        if call.resources is None:
            self._revert_update()
            return Updated()
        try:
            revert = self._held.cgroup.update(parse_resources(call.resources))
        except RuntimeCoreError:
            if self._is_over():
                return Updated()
            raise
        if not call.again:
            self._revert_update = revert
        return self._set_oom_score(call.oom_score_adj)

    def _set_oom_score(self, score: int) -> Updated:
        held = self._held
        assert held.spec is not None
        assert held.spec.process is not None
        assert held.cgroup is not None
        if not score or score == held.spec.process.oom_score_adj:
            return Updated()
        held.spec = replace(held.spec, process=replace(held.spec.process, oom_score_adj=score))  # for later execs
        self._oom_score_adj = score
        self.deposit()
        if held.cgroup.set_oom_score_adj(score):
            return Updated()
        return Updated((f"oom_score_adj {score} needs CAP_SYS_RESOURCE, which crisp does not have: not changed",))

    def freeze(self) -> None:
        """Freeze all processes. Raises RuntimeCoreError unless the container runs."""
        self._require_running("freeze")
        assert self._held.cgroup is not None
        self._held.cgroup.freeze()

    def thaw(self) -> None:
        """Thaw the processes. Raises RuntimeCoreError."""
        if self.state.can_exec and self._held.cgroup is not None:
            self._held.cgroup.thaw()

    def reopen_log(self) -> None:
        if self._log is not None:
            try:
                self._log.reopen()
            except OSError as error:
                raise RuntimeCoreError(error.strerror or "") from error

    def delete(self) -> None:
        """Release everything that is left. The container is not running."""
        self._launcher.commands.forget()
        if self._held.hooks is not None:
            self._held.hooks.begin_poststop()
            self._held.hooks = None
        self._held.remove_cgroup()
        self._close_log()
        self._release()

    def when_deleted(self, callback: Callable[[], None]) -> None:
        """Call back when nothing that `delete` has started needs the bundle any more."""
        self._launcher.when_released(callback)

    def describe(self) -> ContainerStatus:
        logged = self._logged if self._log is None else _counted(self._log)
        return ContainerStatus(self.state.name, self._held.pid, self.started_at, self.exit, logged)

    # -- exec ---------------------------------------------------------------------------------------------------------

    def execute(self, call: calls.Exec, fds: Sequence[int], reply: Reply) -> None:
        """Run another process with `fds` as its streams. Replies with its exit code when it exits."""
        self._require_running("exec in")
        if self._held.cgroup is not None and self._held.cgroup.is_frozen():
            raise NotRunning(f"exec in container {self.id}: it is paused")
        try:
            self._launcher.commands.begin(call, fds, self._unless_over(reply))
        except (RuntimeCoreError, OSError) as error:
            if self._is_over():
                raise self._over() from error
            raise

    def _unless_over(self, reply: Reply) -> Reply:
        """Wrap `reply`: if the container has ended meanwhile, that is the reason for any failure of an exec."""

        def answer(result: calls.Answer | RuntimeCoreError) -> None:
            reply(self._over() if isinstance(result, RuntimeCoreError) and self._is_over() else result)

        return answer

    def _over(self) -> NotRunning:
        return NotRunning(f"exec in container {self.id}: it has just ended")

    def _is_over(self) -> bool:
        """Return whether the init is dead or dying, even if the loop has not noticed yet."""
        held = self._held
        if not self.state.can_exec or held.pidfd < 0:
            return True
        return syscalls.has_ended(held.pidfd) or _is_exiting(held.pid)

    def wait_exec_running(self, key: str, reply: Reply) -> None:
        """Reply when the exec's program runs or has exited; with its terminal's master if it has one."""
        self._launcher.commands.wait_running(key, reply)

    def kill_exec(self, key: str) -> None:
        """Kill an exec's process and everything that it started, including daemonised children in its session."""
        self._launcher.commands.kill(key)

    # -- attach -------------------------------------------------------------------------------------------------------

    def attach(self, call: calls.Attach, fds: Sequence[int], reply: Reply) -> None:
        """Attach a client; `fds` are those of `streams`. Replies when it is detached or the container exits."""
        self._require_running("attach to")
        assert self._attachments is not None
        self._attachments.attach(call.attach, dict(zip(call.streams, fds, strict=True)), reply)

    def detach(self, name: str) -> None:
        if self._attachments is not None:
            self._attachments.detach(name)

    def resize(self, width: int, height: int) -> None:
        """Set the size of the container's terminal, if it has one."""
        if self._console >= 0:
            with failing("resize terminal of", self.id):
                resize_terminal(self._console, width, height)

    # -- succession ---------------------------------------------------------------------------------------------------

    def deposit(self) -> None:
        """Deposit what a successor of the shim needs of the container."""
        deposits = self._supervisor.deposits
        if not deposits.kept or self._create is None:
            return
        with contextlib.ExitStack() as closing:
            fds = self._kept(closing)
            held = self._held
            estate = ContainerEstate(
                create=self._create,
                state=self.state.name,
                fds=tuple(fds),
                start=self._call,
                pid=held.pid,
                started_at=self.started_at,
                exit=self.exit,
                cgroup=held.cgroup.path if held.cgroup is not None else "",
                hooks_ran=held.hooks is not None and held.hooks.have_run,
                oom_kills_above=held.oom_kills_above,
                oom_score_adj=self._oom_score_adj,
                places={output.name: output.place for output in self._outputs},
                holder=held.holder_pid,
            )
            pid = held.pid if "pidfd" in fds else 0
            deposits.put(container_key(self.id), estate.encode(), list(fds.values()), pid)

    def _kept(self, closing: contextlib.ExitStack) -> dict[str, int]:
        """Return the descriptors that a successor needs, by name; the init's pidfd first."""
        if self.state.can_start:
            return self._held.kept()
        if not self.state.can_exec:
            return {}
        assert self._attachments is not None
        fds = {"pidfd": self._held.pidfd, "console": self._console}
        if self._console < 0:
            fds |= {output.name: output.fd for output in self._outputs} | {"stdin": self._attachments.stdin}
        if self._log is not None:
            fds["log"] = self._log.fd
        if self._held.filter:
            fds["filter"] = os.memfd_create("crisp-filter")
            closing.callback(os.close, fds["filter"])
            os.write(fds["filter"], self._held.filter)
        return {name: fd for name, fd in fds.items() if fd >= 0}

    @property
    def log_owes(self) -> bool:
        """Whether the log's next record depends on what a successor would not know."""
        return self._log is not None and self._log.owes

    @property
    def work(self) -> str:
        """What ends with this shim, if it is left to another process now, or ""."""
        if self.state.is_starting or self._start_waiters or self._exit_waiters:
            return f"container {self.id} is starting or ending"
        if self._launcher.commands.running:
            return f"commands run in container {self.id}"
        if self._attachments is not None and self._attachments.in_use:
            return f"somebody is attached to container {self.id}"
        return ""

    def succeed(self, estate: ContainerEstate, fds: dict[str, int]) -> None:
        """Take over a container of an earlier shim, with its `fds`. The shim deposits it. Raises RuntimeCoreError."""
        self._take(estate.create)
        self._call = estate.start
        self.started_at, self._oom_score_adj = estate.started_at, estate.oom_score_adj
        self._held.succeed(estate, fds)
        self.state = StateMachine(estate.state)
        if self.state.is_over:
            self.exit = estate.exit
        elif self.state.can_exec:
            self._succeed_running(estate, fds)
        else:
            self._launcher.succeed(None)
            self._end_broken_start()

    def abandon(self) -> None:
        """End a container that could not be taken over."""
        self._launcher.kill()
        if not self.state.is_over:
            self.state = StateMachine(EXITED)
            self.exit = ExitStatus(calls.UNSEEN, finished_at=time.time_ns())
            self._supervisor.record_exit(self.id, self.exit)
        self._held.remove_cgroup()
        self._close_log()
        self._release()

    def _succeed_running(self, estate: ContainerEstate, fds: dict[str, int]) -> None:
        call = estate.start
        assert call is not None
        program = fds.pop("filter", -1)
        self._held.succeed_running(estate, _content(program) if program >= 0 else b"")
        self._takes_stdin = call.stdin
        self._stdin_once = call.stdin_once and "console" not in fds
        self._log = _log_of(call, fds.pop("log", -1))
        self._console, self._stdin = fds.pop("console", -1), fds.pop("stdin", -1)
        outputs = [(fds[name], name) for name in ("stdout", "stderr") if name in fds]
        if self._console >= 0:
            outputs = [(os.dup(self._console), "stdout")]
            self._stdin = os.dup(self._console) if self._takes_stdin else -1
        self._follow_streams(outputs, estate.places)
        status = self._supervisor.recorded_exit(self.id)
        if status is not None:  # the earlier shim has reaped the init
            self._drain()
            self._ended(status)
        else:
            self._launcher.succeed(self.init_exited)

    def _end_broken_start(self) -> None:
        """End a container whose start had begun: nobody knows how far it came, and who asked got an error."""
        held = self._held
        planned = held.planned_cgroup()
        begun = self.state.is_starting
        if planned is not None and planned.exists():
            begun = begun or any(pid != held.holder_pid for pid in planned.pids())
            if begun or not held.holder_pid:
                held.cgroup = planned
        if not begun:
            return
        self._launcher.kill()
        if self.state.can_start:
            self.state.become(STARTING)
        self.start_failed(())

    # -- resources ----------------------------------------------------------------------------------------------------

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._logged, self._log = _counted(self._log), None

    def _release(self) -> None:
        for attribute in ("_console", "_stdin"):
            fd = getattr(self, attribute)
            if fd >= 0:
                os.close(fd)
                setattr(self, attribute, -1)
        self._held.release()
        self._launcher.release()


def _log_of(call: calls.Start, fd: int = -1) -> LogFile:
    """Open the log, or go on with the open one. Raises OSError."""
    return LogFile(call.log, call.log_trusted, call.log_limit, call.log_rate, fd)


def _content(file: int) -> bytes:
    try:
        return os.pread(file, os.fstat(file).st_size, 0)
    finally:
        os.close(file)


def _counted(log: LogFile) -> calls.Logged:
    written, dropped, lost = log.written, log.dropped, log.lost
    return calls.Logged(written.bytes, written.lines, dropped.bytes, dropped.lines, lost.bytes, lost.lines)


def _is_exiting(pid: int) -> bool:
    """Return whether a process is exiting. Its PID namespace takes no new processes then (ENOMEM), and it has no other
    namespaces left (ESRCH), but it cannot be reaped before everything in its PID namespace is gone.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            flags = int(file.read().rsplit(b") ", 1)[1].split()[6])
    except OSError:
        return True
    return bool(flags & _PF_EXITING)
