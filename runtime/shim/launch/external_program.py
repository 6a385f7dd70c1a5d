"""Runs the command line of another OCI runtime (runc, crun)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final

from linux import syscalls
from linux.tables import DEFAULT_PATH
from runtime.errors import RuntimeCoreError, failing
from runtime.light import contextlib, json, signal, socket
from runtime.process.scheduling import on_every_cpu
from runtime.shim.supervisor import Supervisor
from runtime.wire.calls import ExternalRuntime

NO_STREAMS: Final = (-1, -1, -1)
_ENVIRONMENT: Final = {"PATH": DEFAULT_PATH}
_DEFAULT_SIGNALS: Final = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ
)  # fmt: skip
_LOG_TAIL: Final = 1 << 16

Done = Callable[[int], None]  # exit code, or minus the signal


class CommandFailed(RuntimeCoreError):
    """A command of the runtime failed. The message has the program, the command and the runtime's own error."""


class Program:
    """Another runtime's program, for one container. `flags` go before every command."""

    def __init__(
        self, runtime: ExternalRuntime, bundle: str, supervisor: Supervisor, flags: Sequence[str] = ()
    ) -> None:
        self.by_systemd = runtime.systemd
        self._runtime = runtime
        self._supervisor = supervisor
        self._flags = tuple(flags)
        self._log = os.path.join(bundle, "runtime.log")

    def run(self, words: Sequence[str], streams: tuple[int, int, int], done: Done) -> int:
        """Start a command of the runtime. `done` is called with its exit status. Returns its pid.

        Raises OperationFailed.
        """
        pid = self._spawn(words, streams)
        self._supervisor.command_started(pid, done)
        return pid

    def run_long(self, words: Sequence[str], streams: tuple[int, int, int], done: Done) -> None:
        """Start a command that leaves no processes, and may run as long as the pod. Raises OperationFailed."""
        self._supervisor.on_exit(self._spawn(words, streams), done)

    def _spawn(self, words: Sequence[str], streams: tuple[int, int, int]) -> int:
        flags = ["--root", self._runtime.root, "--log", self._log, "--log-format", "json"]
        flags += ["--systemd-cgroup"] if self.by_systemd else []
        argv = [self._runtime.path, *flags, *self._flags, *words]
        with open(os.devnull, "r+b", buffering=0) as null, failing("run", self._runtime.path):
            sources = [null.fileno() if fd < 0 else fd for fd in streams]
            # Duplicate first: a source may itself be 0, 1 or 2.
            high = [os.dup(fd) for fd in sources]
            syscalls.close_on_exec_from(3)  # a command that goes on must not keep the shim's connections open
            try:
                with on_every_cpu():  # older runtimes pass their CPU affinity on to containers
                    return os.posix_spawn(
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

    @property
    def path(self) -> str:
        """The program's path."""
        return self._runtime.path

    def failure(self, command: str, status: int) -> CommandFailed:
        """Return the runtime's last error, from its log."""
        said = f"exit status {status}" if status >= 0 else f"killed by signal {-status}"
        with contextlib.suppress(OSError), open(self._log, "rb") as file:
            for line in file.read()[-_LOG_TAIL:].splitlines():
                with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):
                    record = json.loads(line)
                    if record.get("level", "").lower() in ("error", "fatal"):
                        # youki has other words than runc, and a stack trace below.
                        said = record.get("msg") or record["message"].partition("\n")[0]
        return CommandFailed(f"{self._runtime.path} {command}: {said}")


class ConsoleSocket:
    """A socket to which the runtime connects, and sends a terminal's master (SCM_RIGHTS)."""

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
        """A path that is short enough for a socket, whatever the directory's path is."""
        return f"/proc/{os.getpid()}/fd/{self._directory}/{self._name}"

    def master(self) -> int:
        """Return the master that the command has sent. The command has exited. Raises OperationFailed."""
        with failing("receive terminal from", "runtime"), self.connection() as sender:
            _data, fds, _flags, _address = socket.recv_fds(sender, 4096, 1, socket.MSG_CMSG_CLOEXEC)
        if not fds:
            raise RuntimeCoreError("receive terminal from runtime: none was sent")
        return fds[0]

    def connection(self) -> socket.socket:
        """Return the command's connection. Raises OSError if there is none."""
        connected, _address = self._listener.accept()
        return connected

    def close(self) -> None:
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._directory)
        os.close(self._directory)


def console_flag(console: ConsoleSocket | None) -> list[str]:
    return [] if console is None else ["--console-socket", console.path]


def adopted(pid_file: str) -> tuple[int, int]:
    """Return the pid and pidfd of the process that a command left, now our child; pidfd -1 if it was reaped."""
    with failing("adopt process of", pid_file):
        with open(pid_file) as file:
            pid = int(file.read())
        os.unlink(pid_file)
        try:
            return pid, os.pidfd_open(pid)
        except ProcessLookupError:  # reaped before the command that started it
            return pid, -1
