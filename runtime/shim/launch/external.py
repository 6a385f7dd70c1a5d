"""Runs containers of another OCI runtime (runc, crun): calls its commands and adopts the processes they leave.

The shim is a subreaper: a container's init, or a detached exec, becomes its child when the command that made it exits.
From then on the shim handles streams, logs, exit statuses and limits as for its own containers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from typing import Final

from linux import syscalls
from linux.mounts import unmount_if_mounted
from runtime.cgroups import Cgroup
from runtime.errors import NotSupported, RuntimeCoreError, failing
from runtime.light import contextlib, signal
from runtime.logs.writer import complain
from runtime.shim.holdings import Holdings
from runtime.shim.launch.attempt import Attempt
from runtime.shim.launch.external_commands import DetachedCommands
from runtime.shim.launch.external_program import NO_STREAMS, ConsoleSocket, Program, adopted, console_flag
from runtime.shim.launch.launcher import Commands
from runtime.spec.values import Process, Resources
from runtime.wire.calls import ExternalRuntime, Prepare, Start

_DELETE_SECONDS: Final = 20.0  # kubelet waits two minutes for RemoveContainer


class ExternalLauncher:
    """Lets another runtime execute config.json, in the cgroup that it will make."""

    fills_cgroup = True

    def __init__(self, held: Holdings, runtime: ExternalRuntime, cgroup: str, flags: Sequence[str] = ()) -> None:
        """Raises NotSupported if the pod has a user namespace."""
        if held.supervisor.user_namespace >= 0:
            reason = "only crisp's own runtime handler supports user namespaces of pods"
            raise NotSupported("create container with", runtime.path, reason)
        self._held = held
        self._program = Program(runtime, held.bundle, held.supervisor, flags)
        self._cgroup = cgroup
        self._mounted: list[str] = []
        self._known = False  # the runtime has state of the container
        self._deleting = False  # its `delete` is running
        self._deletion_waiters: list[Callable[[], None]] = []
        self.commands: Commands = DetachedCommands(held, self._program)

    def place(self) -> None:
        """Attach the rootfs and the images to host paths, for the other runtime."""
        self._attach(self._held.rootfs, os.path.join(self._held.bundle, "rootfs"))
        for path, tree in self._held.trees.items():
            self._attach(tree, path)

    def _attach(self, tree: int, path: str) -> None:
        with failing("mount rootfs on", path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if stat.S_ISDIR(os.fstat(tree).st_mode):
                os.mkdir(path)
            else:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
            syscalls.move_mount(tree, syscalls.AT_FDCWD, path)
        self._mounted.append(path)

    def prepare(self, _call: Prepare, _fds: Sequence[int]) -> None:
        """Do nothing: the other runtime does it all at the start."""

    def plan(self, _call: Start, _process: Process, _fds: Sequence[int]) -> None:
        """Do nothing: the other runtime reads config.json, including the filter, itself."""

    def launch(self, attempt: Attempt, undo: contextlib.ExitStack) -> None:
        """Run `create`, then `start`."""
        held = self._held
        self._make_cgroup(undo)
        console = ConsoleSocket(held.bundle) if attempt.process.terminal else None
        if console is not None:
            undo.callback(console.close)
        pid_file = os.path.join(held.bundle, "init.pid")
        words = ["create", "--bundle", held.bundle, "--pid-file", pid_file, *console_flag(console), held.id]
        launch = _Launch(held.id, self._program, attempt, console, pid_file)
        self._program.run(words, attempt.stdio.child, launch.created)
        self._known = True

    def _make_cgroup(self, undo: contextlib.ExitStack) -> None:
        """Make the cgroup, empty and without limits: the runtime would not remove parents that it makes itself."""
        if self._program.by_systemd:
            self._held.cgroup = Cgroup.at(self._held.hierarchies, self._cgroup)
        else:
            self._held.make_cgroup(self._cgroup, Resources(), undo)

    def succeed(self, ended: Callable[[int], None] | None) -> None:
        held = self._held
        self._mounted = [os.path.join(held.bundle, "rootfs"), *held.images]
        if ended is not None:
            self._known = True
            held.follow_init(ended)

    def signal(self, number: int) -> None:
        """Let the runtime send the signal: its init may be another process than our child."""
        self._program.run(["kill", self._held.id, str(number)], NO_STREAMS, lambda _status: None)

    def kill(self) -> None:
        self._held.kill()

    def release(self) -> None:
        mounted, self._mounted = self._mounted, []
        for path in mounted:
            try:
                unmount_if_mounted(path)
            except OSError as error:
                complain(f"could not unmount {path}: {error}")
        if self._known:
            self._known = False
            pid = self._program.run(["delete", "--force", self._held.id], NO_STREAMS, self._deleted)
            self._deleting = True
            self._held.supervisor.idly(_DELETE_SECONDS, lambda: self._end_deletion(pid))

    def _end_deletion(self, pid: int) -> None:
        """Kill a `delete` that hangs. crispd removes what the runtime keeps of the container."""
        if self._deleting:
            complain(f"{self._program.path} delete of container {self._held.id} took {_DELETE_SECONDS:g} s: killed")
            os.kill(pid, signal.SIGKILL)

    def _deleted(self, _status: int) -> None:
        self._deleting = False
        waiters, self._deletion_waiters = self._deletion_waiters, []
        for callback in waiters:
            callback()

    def when_released(self, callback: Callable[[], None]) -> None:
        """Wait for the runtime's `delete`, which opens its log in the bundle."""
        if self._deleting:
            self._deletion_waiters.append(callback)
        else:
            callback()


class _Launch:
    """A start, from the command `create` to the exit of `start`."""

    def __init__(
        self, container_id: str, program: Program, attempt: Attempt, console: ConsoleSocket | None, pid_file: str
    ) -> None:
        self._id = container_id
        self._program = program
        self._attempt = attempt
        self._console = console
        self._pid_file = pid_file

    def created(self, status: int) -> None:
        try:
            if status:
                raise self._program.failure("create", status)
            self._attempt.adopt(*adopted(self._pid_file))
            if self._attempt.killed:
                raise RuntimeCoreError("the container was killed before its program ran")
            self._program.run(["start", self._id], NO_STREAMS, self._started)
        except RuntimeCoreError as error:
            self._close_console()
            self._attempt.fail(error)

    def _started(self, status: int) -> None:
        try:
            if status:
                raise self._program.failure("start", status)
            master = self._console.master() if self._console is not None else -1
        except RuntimeCoreError as error:
            self._close_console()
            self._attempt.kill()
            self._attempt.fail(error)
            return
        self._close_console()
        self._attempt.succeed(master)

    def _close_console(self) -> None:
        if self._console is not None:
            self._console.close()
            self._console = None
