"""What a container has of the kernel between its creation and its end: mounts, a cgroup, its init."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
from collections.abc import Sequence
from typing import Final

from runtime.cgroups import Cgroup, Hierarchies
from runtime.errors import OPEN_IN_IMAGE, ImageMountFailed, OperationFailed, RuntimeCoreError, failing
from runtime.logs.writer import complain
from runtime.namespaces import user as userns
from runtime.process import users
from runtime.rootfs import overlay
from runtime.rootfs.mount_points import check_mount_points
from runtime.shim.hook_process import ContainerHooks
from runtime.shim.supervisor import Supervisor
from runtime.spec import values as oci
from runtime.spec.parse import parse
from runtime.wire.calls import Create, Identity, ImageMount

_CGROUP_PATIENCE: Final = 2.0  # seconds; the delays up to it double
_NAMESPACE_OF: Final = re.compile(r"/proc/([0-9]+)/ns/[a-z_]+")


class Holdings:
    """A container's, which its launcher uses and adds to. Descriptors are -1, and pids 0, where there is none."""

    def __init__(self, container_id: str, bundle: str, supervisor: Supervisor, hierarchies: Hierarchies) -> None:
        self.id = container_id
        self.bundle = bundle  # the directory of config.json
        self.supervisor = supervisor
        self.hierarchies = hierarchies
        self.rootfs = -1
        self.trees: dict[str, int] = {}  # mounted images, by the source that stands for each in config.json
        self.spec: oci.Spec | None = None  # as of the start
        self.mappings: userns.IDMappings | None = None  # of its user namespace
        self.filter = b""  # of seccomp
        self.filter_flags = 0
        self.hooks: ContainerHooks | None = None
        self.cgroup: Cgroup | None = None
        self.pid = 0
        self.pidfd = -1
        self._holder = -1  # a process in the container's scope until the container's own is there
        self._oom_kills_above = 0  # in the cgroup's parent, before the container was in it

    # -- mounts -------------------------------------------------------------------------------------------------------

    def mount(self, call: Create) -> None:
        """Mount the rootfs and the images. Raises RuntimeCoreError; what was mounted is for `release`."""
        self.rootfs = self._mount_rootfs(call.lower, call.upper, call.work, call.label)
        for name, image in call.images.items():
            self.trees[name] = self._mount_image(image)
        check_mount_points(self.rootfs, call.mount_points, self.trees)

    def _mount_rootfs(self, lower: Sequence[str], upper: str, work: str, label: str) -> int:
        users_of_pod = self.supervisor.user_namespace
        if users_of_pod < 0:
            return overlay.mount_overlay(lower, upper, work, label)
        return overlay.mount_mapped_overlay(
            lower, upper, work, users_of_pod, self.supervisor.empty_mount_namespace, label
        )

    def _mount_image(self, image: ImageMount) -> int:
        users_of_pod, template = self.supervisor.user_namespace, self.supervisor.empty_mount_namespace
        try:
            with failing("mount", "image"):
                return overlay.mount_image(image.lower, image.sub_path, users_of_pod, template)
        except RuntimeCoreError as error:
            if isinstance(error, OperationFailed) and error.operation == OPEN_IN_IMAGE:
                raise
            raise ImageMountFailed(f"mount image: {error}") from error

    def find_user(self, call: Create) -> Identity:
        """Look the user up in the rootfs. Raises UserNotFound."""
        user = call.user
        return users.resolve(self.rootfs, user.user, user.group, user.supplemental, merge=user.merge)

    # -- config.json --------------------------------------------------------------------------------------------------

    def read_spec(self) -> tuple[oci.Spec, oci.Process]:
        """What config.json says, now. Raises RuntimeCoreError for what cannot be started."""
        with open(os.path.join(self.bundle, "config.json"), "rb") as file:
            spec = parse(json.load(file))
        if spec.process is None:
            raise RuntimeCoreError("config.json: process: missing")
        self._require_living_namespaces(spec)
        self.spec = spec
        return spec, spec.process

    def _require_living_namespaces(self, spec: oci.Spec) -> None:
        """Refuse namespaces of processes that are gone: since config.json was written their numbers may be others'."""
        for namespace in spec.linux.namespaces:
            holder = _NAMESPACE_OF.fullmatch(namespace.path)
            if holder and not self.supervisor.is_child(int(holder[1])):
                raise OperationFailed(f"join {namespace.type} namespace", namespace.path, errno.ESRCH)

    # -- cgroup -------------------------------------------------------------------------------------------------------

    def make_cgroup(self, path: str, resources: oci.Resources, undo: contextlib.ExitStack) -> Cgroup:
        """Make the container's cgroup with its limits. Raises RuntimeCoreError."""
        cgroup = Cgroup.at(self.hierarchies, path)
        self.supervisor.uses_cgroup(cgroup)
        cgroup.create(resources)
        self.cgroup = cgroup
        undo.callback(self.remove_cgroup)
        self._oom_kills_above = cgroup.oom_kills_above()
        return cgroup

    def remove_cgroup(self, *, delay: float = 0.002) -> None:
        """Remove it, if need be some time later."""
        if self.cgroup is None:
            return
        try:
            self.cgroup.remove()
        except RuntimeCoreError as error:
            # Dying processes leave a cgroup a moment after their parent was told.
            if delay < _CGROUP_PATIENCE:
                self.supervisor.later(delay, lambda: self.remove_cgroup(delay=2 * delay))
            else:
                complain(f"container {self.id}: {error}")
            return
        self.cgroup = None

    def was_oom_killed(self, signal_number: int) -> bool:
        """Whether the kernel ended something in the cgroup for want of memory; `signal_number` ended the init."""
        assert self.cgroup is not None
        if self.cgroup.oom_kills() > 0:
            return True
        # systemd may be quicker to remove the empty scope, and its count with it. The slice has counted, too.
        killed = signal_number == signal.SIGKILL and self.cgroup.is_gone()
        return killed and self.cgroup.oom_kills_above() > self._oom_kills_above

    def hold_scope(self) -> int:
        """Have a process wait for a scope to be made around it: its pid."""
        pid, self._holder = self.supervisor.start_holder()
        return pid

    def leave_scope(self) -> None:
        """End that process: the container's own is there."""
        if self._holder >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._holder, signal.SIGKILL)
            os.close(self._holder)
            self._holder = -1

    # -- init ---------------------------------------------------------------------------------------------------------

    def take_init(self, pid: int, pidfd: int) -> None:
        """From now on that process is the container's init, in the place of what was so far."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.pid, self.pidfd = pid, pidfd

    def signal_init(self, number: int) -> None:
        """Send a signal; nothing happens when it is gone."""
        if self.pid and self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def has_own_pid_namespace(self) -> bool:
        namespace = self.spec.linux.namespace("pid") if self.spec else None
        return namespace is not None and not namespace.path

    def release(self) -> None:
        """Close all descriptors, and with them unmount what is detached."""
        self.leave_scope()
        userns.close_all(self.trees.values())
        self.trees = {}
        for attribute in ("rootfs", "pidfd"):
            fd = getattr(self, attribute)
            if fd >= 0:
                os.close(fd)
                setattr(self, attribute, -1)
