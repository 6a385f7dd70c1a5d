"""Containers whose processes criu(8) makes again, from the images of a checkpoint.

A process forked off the shim does it, for criu takes its time: in a mount namespace of its own it attaches the rootfs,
and criu restores beside it. When it ends, what was restored is the shim's child, as any container is.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Final, NoReturn

from linux import syscalls
from runtime.criu import worker as criu
from runtime.criu.describe import external_mounts
from runtime.criu.inherit import inherited_objects, make_mount_points
from runtime.errors import OperationFailed, RuntimeCoreError, failing
from runtime.process import become as process
from runtime.process import scheduling
from runtime.process.init import leave_the_loop
from runtime.shim.container import Container
from runtime.shim.hook_process import ContainerHooks
from runtime.shim.reply import Reply
from runtime.shim.stdio import ContainerStdio
from runtime.spec.values import Spec
from runtime.wire import calls, reports

_LOG: Final = "restore.log"


class RestoredContainer(Container):
    """A container that goes on where another one was."""

    def start(self, call: calls.Start, fds: Sequence[int], reply: Reply) -> None:
        """Have it restored. Replies once it runs, or with criu's reason why not."""
        spec, restored = self._startable()
        self._hooks = ContainerHooks(spec, self.id, self._bundle, self._supervisor)
        self._take_filter(call, fds)
        with contextlib.ExitStack() as undo:
            self._open_log(call, undo)
            self._make_cgroup(spec, undo)
            stdio = self._make_streams(call, restored, undo)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(ours.close)
            with theirs, failing("clone", "criu's parent"):
                pid, pidfd = syscalls.clone()
                if pid == 0:
                    _Restoration(self, spec, stdio, reports.Reporter(theirs), call).run()
            os.close(pidfd)
            undo.pop_all()
        self.state = "starting"
        stdio.close_child_ends()
        self._stdin = stdio.stdin
        self._supervisor.command_started(pid, lambda _status: self._restored(ours, stdio, reply))

    def _restored(self, channel: socket.socket, stdio: ContainerStdio, reply: Reply) -> None:
        console = -1
        try:
            with channel:
                pid, console = _outcome(channel)
            self.pid = pid
            with contextlib.suppress(ProcessLookupError):  # it has ended, and was reaped
                self._pidfd = os.pidfd_open(pid)
            self._supervisor.on_exit(pid, self._init_exited)
            try:
                self._started(stdio.outputs, console)
            except OSError as error:
                self.kill()
                raise OperationFailed.of("watch output of", self.id, error) from error
        except RuntimeCoreError as error:
            if console >= 0:
                os.close(console)
            self._start_failed(stdio.outputs)
            reply(error)
            return
        if console >= 0:
            os.close(console)
        assert self._hooks is not None
        self._hooks.begin_poststart(self.pid, lambda failure: self._finish(failure, reply))
        self._exited_meanwhile()

    def _finish(self, failure: RuntimeCoreError | None, reply: Reply) -> None:
        if failure is None:
            reply(calls.Started(self.pid, self.started_at))
        else:
            self.kill()
            self.wait(lambda: reply(failure))


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
        container: Container,
        spec: Spec,
        stdio: ContainerStdio,
        reporter: reports.Reporter,
        call: calls.Start,
    ) -> None:
        self._container = container
        self._spec = spec
        self._stdio = stdio
        self._reporter = reporter
        self._images = call.restore
        self._work = call.work
        self._program = call.criu  # as crispd finds it, whose PATH is the operator's

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
        streams = [fd if fd >= 0 else os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) for fd in self._stdio.child]
        fds, inherited = inherited_objects(self._spec, self._images, streams, opened)
        cgroup = self._container._cgroup
        assert cgroup is not None
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
        container = self._container
        root = os.path.join(container._bundle, "rootfs")
        with failing("make mount namespace for", "criu"):
            syscalls.unshare(syscalls.CLONE_NEWNS)
            # Not private: of volumes that propagate, criu copies how they do from where they come.
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
        with failing("mount", root):
            os.makedirs(root, 0o700, exist_ok=True)
            syscalls.move_mount(container._rootfs, syscalls.AT_FDCWD, root)
            syscalls.mount(None, root, None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        for path, tree in container._trees.items():
            with failing("mount", path):
                os.makedirs(path, 0o700, exist_ok=True)
                syscalls.move_mount(tree, syscalls.AT_FDCWD, path)
        return root

    def _notified(self, note: criu.Notification) -> None:
        if note.script == "setup-namespaces":
            assert self._container._hooks is not None
            self._container._hooks.run_creation(note.pid)
        elif note.script == "orphan-pts-master" and note.fd >= 0:
            self._reporter.say(reports.Console(note.fd))
            os.close(note.fd)
        elif note.fd >= 0:
            os.close(note.fd)
