"""Containers whose processes criu(8) makes again, from the images of a checkpoint.

A process forked off the shim does it, for criu takes its time: in a mount namespace of its own it attaches the rootfs,
and criu restores beside it. When it ends, what was restored is the shim's child, as any container is.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from linux import syscalls
from runtime.cgroups import Cgroup
from runtime.criu import worker as criu
from runtime.criu.describe import external_mounts
from runtime.criu.inherit import inherited_objects, make_mount_points
from runtime.errors import RuntimeCoreError, failing
from runtime.process import become as process
from runtime.process import scheduling
from runtime.process.init import leave_the_loop
from runtime.shim.holdings import Holdings
from runtime.shim.hook_process import ContainerHooks
from runtime.shim.launch.attempt import Attempt
from runtime.shim.launch.commands import JoiningCommands
from runtime.shim.launch.filters import filter_of
from runtime.spec.values import Process, Spec
from runtime.wire import calls, reports

_LOG: Final = "restore.log"


class RestoredLauncher:
    """Has criu make the processes of a container that goes on where another one was."""

    def __init__(self, held: Holdings) -> None:
        self._held = held
        self.commands = JoiningCommands(held)

    def place(self) -> None:
        """The rootfs is attached in a mount namespace of the process that calls criu."""

    def plan(self, call: calls.Start, _process: Process, fds: Sequence[int]) -> None:
        held = self._held
        assert held.spec is not None
        held.hooks = ContainerHooks(held.spec, held.id, held.bundle, held.supervisor)
        held.filter, held.filter_flags = filter_of(call, fds)

    def launch(self, attempt: Attempt, undo: contextlib.ExitStack) -> None:
        """Have it restored by a process of its own."""
        held = self._held
        assert held.spec is not None
        cgroup = held.make_cgroup(held.spec.linux.cgroups_path, held.spec.linux.resources, undo)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.callback(ours.close)
        with theirs, failing("clone", "criu's parent"):
            pid, pidfd = syscalls.clone()
            if pid == 0:
                _Restoration(held, held.spec, cgroup, attempt, reports.Reporter(theirs)).run()
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
        with contextlib.suppress(ProcessLookupError):  # it has ended, and was reaped
            pidfd = os.pidfd_open(pid)
        attempt.adopt(pid, pidfd)
        attempt.succeed(console)

    def signal(self, number: int) -> None:
        self._held.signal_init(number)

    def release(self) -> None:
        """All that there is are descriptors."""

    def when_released(self, callback: Callable[[], None]) -> None:
        callback()


def _outcome(channel: socket.socket) -> tuple[int, int]:
    """The pid, and the master of the terminal or -1, that the process which has ended told. Raises its failure."""
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
    """What the forked process does; it never returns to the shim's loop."""

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
        self._program = attempt.call.criu  # as crispd finds it, whose PATH is the operator's

    def run(self) -> NoReturn:
        try:
            leave_the_loop()
            process.die_with_parent()
            scheduling.leave_the_makers_cpus()  # criu's, and with them those of what it makes
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
        program = self._program or criu.find()  # without it, that is what to say, whatever else may be wrong
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
        """The rootfs and the images as mounts of a namespace of ours, which goes with us; where the rootfs is."""
        held = self._held
        root = os.path.join(held.bundle, "rootfs")
        with failing("make mount namespace for", "criu"):
            syscalls.unshare(syscalls.CLONE_NEWNS)
            # Not private: of volumes that propagate, criu copies how they do from where they come.
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
