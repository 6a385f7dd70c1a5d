"""Containers that another OCI runtime makes (runc, crun): the shim runs its commands, and adopts what they leave.

The shim is a subreaper: a container's init and a detached exec's process become its children when the command that made
them ends. Streams, logs, exit statuses and limits are then the shim's business as for containers of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
from collections.abc import Callable, Sequence
from typing import Any, Final

from linux import syscalls
from linux.mounts import unmount_if_mounted
from linux.tables import DEFAULT_PATH
from runtime.cgroups import Cgroup, Hierarchies
from runtime.errors import NotRunning, NotSupported, OperationFailed, RuntimeCoreError, failing
from runtime.logs.writer import complain
from runtime.process.scheduling import on_every_cpu
from runtime.shim.container import Container, Supervisor
from runtime.shim.execs import kill_family
from runtime.shim.reply import Reply
from runtime.shim.stdio import ContainerStdio
from runtime.spec.values import Resources, with_term
from runtime.wire import calls

_ENVIRONMENT: Final = {"PATH": DEFAULT_PATH}
_DEFAULT_SIGNALS: Final = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ
)  # fmt: skip
_LOG_TAIL: Final = 1 << 16

Done = Callable[[int], None]  # exit code, or minus the signal


class CommandFailed(RuntimeCoreError):
    """A command of the runtime failed: "/usr/sbin/runc create: exec: \"x\": executable file not found in $PATH"."""


class ExternalContainer(Container):
    """A container whose config.json another runtime carries out."""

    def __init__(
        self,
        container_id: str,
        bundle: str,
        supervisor: Supervisor,
        hierarchies: Hierarchies,
        runtime: calls.ExternalRuntime,
    ) -> None:
        super().__init__(container_id, bundle, supervisor, hierarchies)
        self._runtime = runtime
        self._cgroup_path = ""
        self._mounted: list[str] = []
        self._known = False  # the runtime has state of it
        self._external_execs: dict[str, _Exec] = {}

    # -- created ------------------------------------------------------------------------------------------------------

    def create(self, call: calls.Create) -> calls.Created:
        """Mount rootfs and image volumes as the built-in runtime does, but where the other one finds them."""
        if self._supervisor.user_namespace >= 0:
            reason = "only crisp's own runtime puts containers in a pod's user namespace"
            raise NotSupported("create container with", self._runtime.path, reason)
        self._cgroup_path = call.cgroup
        answer = super().create(call)
        try:
            self._attach(self._rootfs, os.path.join(self._bundle, "rootfs"))
            for path, tree in self._trees.items():
                self._attach(tree, path)
        except BaseException:
            self._release()
            raise
        return answer

    def _attach(self, tree: int, path: str) -> None:
        with failing("mount rootfs on", path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if stat.S_ISDIR(os.fstat(tree).st_mode):
                os.mkdir(path)
            else:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
            syscalls.move_mount(tree, syscalls.AT_FDCWD, path)
        self._mounted.append(path)

    # -- running ------------------------------------------------------------------------------------------------------

    def start(self, call: calls.Start, _fds: Sequence[int], reply: Reply) -> None:
        """Run `create` and `start`. Replies once the user's program runs, or with what the runtime says why not."""
        _spec, process = self._startable()
        with contextlib.ExitStack() as undo:
            self._open_log(call, undo)
            self._make_other_cgroup(undo)
            stdio = self._make_streams(call, process, undo)
            console = _ConsoleSocket(self._bundle) if process.terminal else None
            if console is not None:
                undo.callback(console.close)
            pid_file = os.path.join(self._bundle, "init.pid")
            words = ["create", "--bundle", self._bundle, "--pid-file", pid_file, *_console_flag(console), self.id]
            attempt = _Start(self, stdio, console, pid_file, reply)
            self._run(words, stdio.child, attempt.created)
            undo.pop_all()
        self.state = "starting"
        self._known = True
        stdio.close_child_ends()
        self._stdin = stdio.stdin

    def _make_other_cgroup(self, undo: contextlib.ExitStack) -> None:
        """The container's cgroup, empty and without limits: parents that the runtime made it would not remove."""
        self._cgroup = cgroup = Cgroup.at(self._hierarchies, self._cgroup_path)
        if not self._runtime.systemd:
            self._supervisor.uses_cgroup(cgroup)
            cgroup.create(Resources())
            undo.callback(self._remove_cgroup)

    def signal(self, number: int) -> None:
        """Have the runtime send it: its init may be another process than the one that we are the parent of."""
        if self.state == "running":
            self._run(["kill", self.id, str(number)], _NO_STREAMS, lambda _status: None)

    # -- exec ---------------------------------------------------------------------------------------------------------

    def execute(self, call: calls.Exec, fds: Sequence[int], reply: Reply) -> None:
        """Run another process with `fds` as its streams, by `exec --detach`. Replies with its exit code at its end."""
        if self.state != "running":
            raise NotRunning(f"exec in container {self.id}: it is not running")
        if self._cgroup is not None and self._cgroup.is_frozen():
            raise NotRunning(f"exec in container {self.id}: it is paused")
        terminal = call.terminal
        key = call.exec
        place = os.path.join(self._bundle, f"exec-{key}")
        with open(f"{place}.json", "w") as file:
            json.dump(self._process(call.args, terminal=terminal), file)
        console = _ConsoleSocket(self._bundle, os.path.basename(place)) if terminal else None
        entry = self._external_execs[key] = _Exec(self, key, place, console, self.unless_over(reply))
        words = ["exec", "--process", f"{place}.json", "--pid-file", f"{place}.pid", "--detach"]
        streams = _NO_STREAMS if terminal else (fds[0], fds[1], fds[2])
        try:
            self._run([*words, *_console_flag(console), self.id], streams, entry.made)
        except BaseException:
            entry.close()
            raise

    def _process(self, args: Sequence[str], *, terminal: bool) -> dict[str, Any]:
        with open(os.path.join(self._bundle, "config.json"), "rb") as file:
            process: dict[str, Any] = json.load(file)["process"]
        process |= {"args": list(args), "terminal": terminal}
        process.pop("consoleSize", None)
        if terminal:
            process["env"] = list(with_term(process.get("env", ())))
        return process

    def wait_exec_running(self, key: str, reply: Reply) -> None:
        entry = self._external_execs.get(key)
        if entry is None:
            reply(calls.Descriptors())
        else:
            entry.wait_running(reply)

    def kill_exec(self, key: str) -> None:
        entry = self._external_execs.get(key)
        if entry is not None:
            entry.killed = True
            if entry.pidfd >= 0:
                self._kill_family(entry.pid, entry.pidfd)

    def _kill_family(self, first: int, pidfd: int) -> None:
        if self._cgroup is not None:
            kill_family(first, pidfd, self._cgroup)

    # -- resources ----------------------------------------------------------------------------------------------------

    def _release(self) -> None:
        super()._release()
        mounted, self._mounted = self._mounted, []
        for path in mounted:
            try:
                unmount_if_mounted(path)
            except OSError as error:
                complain(f"unmount {path}: {error}")
        if self._known:
            self._known = False
            self._run(["delete", "--force", self.id], _NO_STREAMS, lambda _status: None)

    def _run(self, words: Sequence[str], streams: tuple[int, int, int], done: Done) -> None:
        """Start a command of the runtime; `done` is called with how it ended. Raises OperationFailed."""
        flags = ["--root", self._runtime.root, "--log", self._command_log(), "--log-format", "json"]
        argv = [self._runtime.path, *flags, *(["--systemd-cgroup"] if self._runtime.systemd else []), *words]
        with open(os.devnull, "r+b", buffering=0) as null, failing("run", self._runtime.path):
            sources = [null.fileno() if fd < 0 else fd for fd in streams]
            # Not onto 0 to 2 at once: a source may be one of them.
            high = [os.dup(fd) for fd in sources]
            try:
                with on_every_cpu():  # only the newest runtimes do not hand down to containers what they were born with
                    pid = os.posix_spawn(
                        self._runtime.path,
                        argv,
                        _ENVIRONMENT,
                        file_actions=[(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(high)],
                        setsigdef=_DEFAULT_SIGNALS,
                        setsigmask=(),
                    )
            finally:
                for fd in high:
                    os.close(fd)
        self._supervisor.command_started(pid, done)

    def _command_log(self) -> str:
        return os.path.join(self._bundle, "runtime.log")

    def _failure(self, command: str, status: int) -> CommandFailed:
        """What the runtime said of its last failure, as its log has it."""
        said = f"exit status {status}" if status >= 0 else f"killed by signal {-status}"
        with contextlib.suppress(OSError), open(self._command_log(), "rb") as file:
            for line in file.read()[-_LOG_TAIL:].splitlines():
                with contextlib.suppress(ValueError, TypeError):
                    record = json.loads(line)
                    if record.get("level") in ("error", "fatal"):
                        said = record["msg"]
        return CommandFailed(f"{self._runtime.path} {command}: {said}")


_NO_STREAMS: Final = (-1, -1, -1)


class _ConsoleSocket:
    """Where the runtime sends the other end of a terminal (SCM_RIGHTS)."""

    def __init__(self, directory: str, name: str = "console") -> None:
        self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._name = f"{name}.sock"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with failing("listen on", self._name):
                self._listener.bind(f"/proc/self/fd/{self._directory}/{self._name}")
                self._listener.listen(1)
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> str:
        """A name short enough for a socket's, however long the directory's is."""
        return f"/proc/{os.getpid()}/fd/{self._directory}/{self._name}"

    def master(self) -> int:
        """What was sent by the command that has ended. Raises OperationFailed."""
        with failing("receive terminal from", "runtime"):
            sender, _ = self._listener.accept()
            with sender:
                _data, fds, _flags, _address = socket.recv_fds(sender, 4096, 1, socket.MSG_CMSG_CLOEXEC)
        if not fds:
            raise RuntimeCoreError("receive terminal from runtime: none was sent")
        return fds[0]

    def close(self) -> None:
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._directory)
        os.close(self._directory)


def _console_flag(console: _ConsoleSocket | None) -> list[str]:
    return [] if console is None else ["--console-socket", console.path]


def _adopted(pid_file: str) -> tuple[int, int]:
    """The process that a command left, now a child of ours: its pid and a descriptor of it, -1 if it has ended."""
    with failing("adopt process of", pid_file):
        with open(pid_file) as file:
            pid = int(file.read())
        os.unlink(pid_file)
        try:
            return pid, os.pidfd_open(pid)
        except ProcessLookupError:  # and was reaped, before the command that made it
            return pid, -1


class _Start:
    """A start between the command `create` and the end of `start`."""

    def __init__(
        self,
        container: ExternalContainer,
        stdio: ContainerStdio,
        console: _ConsoleSocket | None,
        pid_file: str,
        reply: Reply,
    ) -> None:
        self._container = container
        self._stdio = stdio
        self._console = console
        self._pid_file = pid_file
        self._reply = reply

    def created(self, status: int) -> None:
        container = self._container
        try:
            if status:
                raise container._failure("create", status)
            container.pid, container._pidfd = _adopted(self._pid_file)
            container._supervisor.on_exit(container.pid, container._init_exited)
            if container._killed:
                raise RuntimeCoreError("the container was killed before its program ran")
            container._run(["start", container.id], _NO_STREAMS, self._started)
        except RuntimeCoreError as error:
            self._fail(error)

    def _started(self, status: int) -> None:
        container = self._container
        try:
            if status:
                raise container._failure("start", status)
            master = self._console.master() if self._console is not None else -1
            self._close_console()
            try:
                container._started(self._stdio.outputs, master)
            except OSError as error:
                raise OperationFailed.of("watch output of", container.id, error) from error
        except RuntimeCoreError as error:
            container.kill()
            self._fail(error)
            return
        self._reply(calls.Started(container.pid, container.started_at))
        container._exited_meanwhile()

    def _fail(self, error: RuntimeCoreError) -> None:
        self._close_console()
        self._container._start_failed(self._stdio.outputs)
        self._reply(error)

    def _close_console(self) -> None:
        if self._console is not None:
            self._console.close()
            self._console = None


class _Exec:
    """A detached exec: from the command that makes its process over to that process's end."""

    def __init__(
        self, container: ExternalContainer, key: str, place: str, console: _ConsoleSocket | None, reply: Reply
    ) -> None:
        self._container = container
        self._key = key
        self._place = place
        self._console = console
        self._reply = reply
        self._running_reply: Reply | None = None
        self._master = -1
        self.pid = 0
        self.pidfd = -1
        self.killed = False

    def wait_running(self, reply: Reply) -> None:
        """Reply when the process runs, with the other end of its terminal if it has one; or when it never will."""
        self._running_reply = reply
        if self.pid:
            self._tell_running()

    def made(self, status: int) -> None:
        try:
            if status:
                raise self._container._failure("exec", status)
            self.pid, self.pidfd = _adopted(f"{self._place}.pid")
            self._container._supervisor.on_exit(self.pid, self._exited)
            if self._console is not None:
                self._master = self._console.master()
        except RuntimeCoreError as error:
            if self.pid == 0:
                self._reply(error)
                self._tell_running()
                self.close()
                return
            self.killed = True
        self._tell_running()
        if self.killed and self.pidfd >= 0:
            self._container._kill_family(self.pid, self.pidfd)

    def _tell_running(self) -> None:
        reply, self._running_reply = self._running_reply, None
        if reply is not None:
            reply(calls.Descriptors((self._master,) if self._master >= 0 else ()))

    def _exited(self, status: int) -> None:
        self._reply(calls.ExecEnded(128 - status if status < 0 else status))
        self._tell_running()
        self.close()

    def close(self) -> None:
        self._container._external_execs.pop(self._key, None)
        if self._console is not None:
            self._console.close()
        for suffix in (".json", ".pid"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._place + suffix)
        for fd in (self.pidfd, self._master):
            if fd >= 0:
                os.close(fd)
