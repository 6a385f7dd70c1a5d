"""Implements `crisp-oci restore`: restores a container with criu(8) from the files that `checkpoint` wrote."""

from __future__ import annotations

import os

from linux import syscalls
from runtime import validation
from runtime.command import creation, image_files, removal
from runtime.command.flags import Flag, Options, UsageError
from runtime.command.foreground import DETACH_FLAGS, attend, forward_signals
from runtime.command.group import ContainerGroup
from runtime.command.handover import send_console, write_pid_file
from runtime.command.image_files import Directories, criu_options
from runtime.command.invocation import Context, only, owner_name
from runtime.command.opening import run_poststart
from runtime.command.record import Record, start_time, state_document
from runtime.command.store import Entry
from runtime.criu import worker as criu
from runtime.criu.describe import external_mounts
from runtime.criu.inherit import inherited_objects, make_mount_points
from runtime.errors import NotSupported, failing
from runtime.light import contextlib
from runtime.process import scheduling
from runtime.process.hooks import run_hooks
from runtime.spec.values import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from runtime.cgroups import Cgroup

FLAGS: Final = (
    *creation.BUNDLE_FLAGS,
    *DETACH_FLAGS,
    Flag("lsm-profile", argument="TYPE:NAME", help="replace the checkpoint's profile (apparmor:, selinux:)"),
    Flag("lsm-mount-context", argument="CONTEXT", help="replace the SELinux context of mounts"),
    *image_files.FLAGS,
)
ARGUMENTS: Final = "ID"
_LOG: Final = "restore.log"


def run(context: Context, options: Options, operands: list[str]) -> int:
    id, detach = only(operands, "ID"), options.switch("detach")
    if context.rootless:
        raise NotSupported("restore", id, "criu needs root on the host")
    bundle = os.path.abspath(options.text("bundle", "."))
    text, spec, process = creation.load(bundle, context.log.warning)
    if process.terminal and detach and not options.text("console-socket"):
        raise UsageError("cannot allocate tty if runc will detach without setting console socket")
    restoration = _Restoration(context, options, bundle, spec)
    entry = context.store.reserve(id)
    with contextlib.ExitStack() as undo:
        undo.callback(entry.remove)
        entry.write("config.json", text)
        restoration.restore(entry, undo)
        if pid_file := options.text("pid-file"):
            write_pid_file(pid_file, restoration.record.pid)
        undo.pop_all()
    done = False
    try:
        pidfd = syscalls.pidfd_open(restoration.record.pid)
        if not detach:
            forward_signals(lambda: pidfd)
        run_poststart(restoration.record, spec)
        done = detach
        return 0 if detach else attend(restoration.record.pid, pidfd, restoration.console)
    finally:
        if not done:
            with entry.locked():
                removal.destroy(entry, restoration.record, context.log)


class _Restoration:
    """Restores a container. `record`, and `console` (the terminal's master or -1), are set when `restore` returns."""

    def __init__(self, context: Context, options: Options, bundle: str, spec: Spec) -> None:
        self.record: Record
        self.console = -1
        self._context = context
        self._options = options
        self._bundle = bundle
        self._spec = creation.with_sources(spec, bundle)
        validation.check_host(self._spec)
        self._rootfs = creation.rootfs_path(bundle, spec)

    def restore(self, entry: Entry, undo: contextlib.ExitStack) -> None:
        """Restore the container. Raises RuntimeCoreError. `undo` gets the cleanup of what was done."""
        spec = self._spec
        record = self.record = creation.new_record(entry.id, spec, self._bundle, owner_name())
        if spec.linux.seccomp is not None:  # for execs only: criu restores the processes' own filters
            entry.write("filter", creation.compiled_filter(spec)[0])
        group = ContainerGroup(self._context, spec, record)
        cgroup = group.make(undo)
        entry.save(record)
        make_mount_points(self._rootfs, spec)
        with contextlib.ExitStack() as opened:
            asked = self._criu_options(cgroup)
            if record.cgroup:
                asked["cg_root"] = [
                    criu.cgroup_root(record.cgroup, controller) for controller in (*cgroup.hierarchies.v1, "")
                ]
            namespace, directories = self._own_mounts(opened)
            asked |= criu_options(self._options, directories)
            undo.callback(self._end)
            fds, inherited = inherited_objects(spec, directories.path, (0, 1, 2), opened)
            asked["inherit_fd"] = inherited

            def prepare() -> None:
                syscalls.setns(namespace, syscalls.CLONE_NEWNS)
                scheduling.leave_the_makers_cpus()  # criu's CPUs, which the processes it makes inherit

            worker = criu.Worker(prepare, keep=fds)
            record.pid = worker.call(criu.RESTORE, asked, directories.log, lambda note: self._notified(note, undo))
        record.start_time = start_time(record.pid)
        entry.save(record)
        group.end_placeholder()
        undo.callback(removal.end, record)

    def _criu_options(self, cgroup: Cgroup) -> dict[str, criu.Value]:
        mounts = external_mounts(self._spec, cgroup)
        asked: dict[str, criu.Value] = {
            "root": self.record.rootfs,
            "rst_sibling": True,  # restore as our child, so that we get its exit status
            "external": [f"mnt[{destination}]:{source}" for destination, source in mounts],
        }
        for name in ("lsm-profile", "lsm-mount-context"):
            if text := self._options.text(name):
                asked[name.replace("-", "_")] = text
        return asked

    def _own_mounts(self, opened: contextlib.ExitStack) -> tuple[int, Directories]:
        """Make a mount namespace for criu in which the rootfs is a mount, and open criu's directories in it.

        criu mounts in those directories, which fails through descriptors of another namespace. We return to our own
        namespace, because the hooks run in it.
        """
        home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        here = os.open(".", os.O_PATH | os.O_CLOEXEC)
        with failing("make mount namespace for", "criu"):
            syscalls.unshare(syscalls.CLONE_NEWNS)
        try:
            with failing("mount", self.record.rootfs):
                # Slave, not private: criu copies the propagation of volumes from their source mounts.
                syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
                syscalls.mount(self.record.rootfs, self.record.rootfs, None, syscalls.MS_BIND | syscalls.MS_REC)
                syscalls.mount(None, self.record.rootfs, None, syscalls.MS_REC | syscalls.MS_PRIVATE)
            namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, namespace)
            return namespace, Directories.open(self._options, _LOG, opened, make=False)
        finally:
            syscalls.setns(home, syscalls.CLONE_NEWNS)
            os.fchdir(here)
            os.close(home)
            os.close(here)

    def _notified(self, note: criu.Notification, undo: contextlib.ExitStack) -> None:
        if note.script == "setup-namespaces":
            hooks = self._spec.hooks
            state = state_document(self.record, "creating", self._spec.annotations) | {"pid": note.pid}
            undo.callback(removal.run_poststop, hooks, state, self._context.log)
            run_hooks("prestart", hooks.prestart, state)
            run_hooks("createRuntime", hooks.create_runtime, state)
        elif note.script == "orphan-pts-master" and note.fd >= 0:
            path = self._options.text("console-socket")
            if not path:
                self.console = note.fd
                return
            try:
                send_console(note.fd, path)
            finally:
                os.close(note.fd)
        elif note.fd >= 0:
            os.close(note.fd)

    def _end(self) -> None:
        if self.console >= 0:
            os.close(self.console)
