"""Restores containers with criu(8) from the images of a checkpoint.

A process forked off the shim does it, because criu takes time: it attaches the rootfs in its own mount namespace and
lets criu restore beside it. When it exits, the restored init is the shim's child, as for any container.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from linux import syscalls
from runtime.cgroups import Cgroup
from runtime.criu import worker as criu
from runtime.criu.describe import external_mounts
from runtime.criu.inherit import inherited_objects, make_mount_points
from runtime.errors import RuntimeCoreError, failing
from runtime.light import contextlib, socket
from runtime.process import scheduling
from runtime.process.init import leave_the_loop
from runtime.process.parent import die_with, own_pidfd
from runtime.shim.holdings import Holdings
from runtime.shim.hook_process import ContainerHooks
from runtime.shim.launch.attempt import Attempt
from runtime.shim.launch.commands import JoiningCommands
from runtime.shim.launch.filters import filter_of
from runtime.spec.values import Process, Spec
from runtime.wire import calls, reports

_LOG: Final = "restore.log"


class RestoredLauncher:
    """Lets criu make the processes of a container that continues from a checkpoint."""

    fills_cgroup = True

    def __init__(self, held: Holdings) -> None:
        self._held = held
        self.commands = JoiningCommands(held)

    def place(self) -> None:
        """Do nothing: the process that calls criu attaches the rootfs."""

    def prepare(self, _call: calls.Prepare, _fds: Sequence[int]) -> None:
        """Do nothing: criu does it all at the start."""

    def plan(self, call: calls.Start, _process: Process, fds: Sequence[int]) -> None:
        held = self._held
        assert held.spec is not None
        held.hooks = ContainerHooks(held.spec, held.id, held.bundle, held.supervisor)
        held.filter, held.filter_flags = filter_of(call, fds)

    def launch(self, attempt: Attempt, undo: contextlib.ExitStack) -> None:
        """Let a forked process restore the container."""
        held = self._held
        assert held.spec is not None
        cgroup = held.make_cgroup(held.spec.linux.cgroups_path, held.spec.linux.resources, undo)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.callback(ours.close)
        with theirs, failing("clone", "criu's parent"), own_pidfd() as shim:
            pid, pidfd = syscalls.clone()
            if pid == 0:
                _Restoration(held, held.spec, cgroup, attempt, reports.Reporter(theirs)).run(shim)
        os.close(pidfd)
        held.supervisor.command_started(pid, lambda _status: self._restored(ours, attempt))

    def _restored(self, channel: socket.socket, attempt: Attempt) -> None:
        try:
            with channel:
                pid, console = _outcome(channel)
        except RuntimeCoreError as error:
            attempt.fail(error)
            return
        pidfd = -1
        with contextlib.suppress(ProcessLookupError):  # it has exited and was reaped
            pidfd = os.pidfd_open(pid)
        attempt.adopt(pid, pidfd)
        attempt.succeed(console)

    def succeed(self, ended: Callable[[int], None] | None) -> None:
        if ended is not None:
            self.commands.succeed()
            self._held.follow_init(ended)

    def signal(self, number: int) -> None:
        self._held.signal_init(number)

    def kill(self) -> None:
        self._held.kill()

    def release(self) -> None:
        """Do nothing: there are only descriptors."""

    def when_released(self, callback: Callable[[], None]) -> None:
        callback()


def _outcome(channel: socket.socket) -> tuple[int, int]:
    """Return the init's pid and the terminal's master (or -1) that the exited process reported. Raises its error."""
    pid, console = 0, -1
    conversation = reports.Conversation(reports.RESTORER)
    while not isinstance(report := reports.receive(channel, conversation), reports.Ended):
        match report:
            case reports.Console(master):
                console = master
            case reports.Restored(number):
                pid = number
    if conversation.outcome is not None:
        if console >= 0:
            os.close(console)
        raise conversation.outcome
    return pid, console


class _Restoration:
    """Runs in the forked process, and never returns to the shim's loop."""

    def __init__(
        self,
        held: Holdings,
        spec: Spec,
        cgroup: Cgroup,
        attempt: Attempt,
        reporter: reports.Reporter,
    ) -> None:
        self._held = held
        self._spec = spec
        self._cgroup = cgroup
        self._streams = attempt.stdio.child
        self._reporter = reporter
        self._images = attempt.call.restore
        self._work = attempt.call.work
        self._program = attempt.call.criu  # found by crispd, which has the operator's PATH

    def run(self, shim: int) -> NoReturn:
        try:
            die_with(shim)
            leave_the_loop()
            scheduling.leave_the_makers_cpus()  # criu's CPUs, which the processes it makes inherit
            with contextlib.ExitStack() as opened:
                self._reporter.say(reports.Restored(self._restore(opened)))
            os._exit(0)
        except RuntimeCoreError as error:
            self._reporter.fail(error)
        except BaseException as error:
            self._reporter.fail(RuntimeCoreError(f"restore container: {type(error).__name__}: {error}"))
        finally:
            os._exit(1)

    def _restore(self, opened: contextlib.ExitStack) -> int:
        program = self._program or criu.find()  # first: if criu is missing, report that before anything else
        root = self._attach_mounts()
        make_mount_points(root, self._spec)
        directories = []
        for path in (self._images, self._work):
            with failing("open", path):
                directories.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            opened.callback(os.close, directories[-1])
        streams = [fd if fd >= 0 else os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) for fd in self._streams]
        fds, inherited = inherited_objects(self._spec, self._images, streams, opened)
        cgroup = self._cgroup
        asked: dict[str, criu.Value] = {
            "images_dir_fd": directories[0],
            "work_dir_fd": directories[1],
            "root": root,
            "rst_sibling": True,
            "external": [f"mnt[{destination}]:{source}" for destination, source in external_mounts(self._spec, cgroup)],
            "inherit_fd": inherited,
            "manage_cgroups": True,
            "manage_cgroups_mode": criu.CGROUP_MODES["soft"],
            "cg_root": [criu.cgroup_root(cgroup.path, name) for name in (*cgroup.hierarchies.v1, "")],
            "tcp_established": True,
            "file_locks": True,
            "orphan_pts_master": True,
            "notify_scripts": True,
        }
        worker = criu.Worker(keep=fds, program=program)
        return worker.call(criu.RESTORE, asked, os.path.join(self._work, _LOG), self._notified)

    def _attach_mounts(self) -> str:
        """Attach the rootfs and the images in a new mount namespace, and return the rootfs's path."""
        held = self._held
        root = os.path.join(held.bundle, "rootfs")
        with failing("make mount namespace for", "criu"):
            syscalls.unshare(syscalls.CLONE_NEWNS)
            # Slave, not private: criu copies the propagation of volumes from their source mounts.
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
        with failing("mount", root):
            os.makedirs(root, 0o700, exist_ok=True)
            syscalls.move_mount(held.rootfs, syscalls.AT_FDCWD, root)
            syscalls.mount(None, root, None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        for path, tree in held.trees.items():
            with failing("mount", path):
                os.makedirs(path, 0o700, exist_ok=True)
                syscalls.move_mount(tree, syscalls.AT_FDCWD, path)
        return root

    def _notified(self, note: criu.Notification) -> None:
        if note.script == "setup-namespaces":
            assert self._held.hooks is not None
            self._held.hooks.run_creation(note.pid)
        elif note.script == "orphan-pts-master" and note.fd >= 0:
            self._reporter.say(reports.Console(note.fd))
            os.close(note.fd)
        elif note.fd >= 0:
            os.close(note.fd)
