"""Holds a container's kernel objects between its creation and its end: mounts, cgroup, init."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence
from typing import Final

from runtime.cgroups import Cgroup, Hierarchies
from runtime.errors import OPEN_IN_IMAGE, ImageMountFailed, OperationFailed, RuntimeCoreError, failing
from runtime.light import contextlib, json, replace, signal
from runtime.logs.writer import complain
from runtime.namespaces import user as userns
from runtime.process import users
from runtime.process.infra import OUTLIVE
from runtime.rootfs import overlay
from runtime.rootfs.mount_points import check_mount_points
from runtime.shim.estates import ContainerEstate
from runtime.shim.hook_process import ContainerHooks
from runtime.shim.supervisor import Supervisor
from runtime.spec import values as oci
from runtime.spec.parse import parse
from runtime.wire.calls import Create, Identity, ImageMount, MountPoint

_CGROUP_PATIENCE: Final = 2.0  # seconds; the delay doubles up to it
_TREE: Final = "tree "  # and a mounted image's name
_NAMESPACE_OF: Final = re.compile(r"/proc/([0-9]+)/ns/[a-z_]+")


class Holdings:
    """A container's kernel objects, which its launcher uses and adds to. Missing descriptors are -1, missing pids 0."""

    def __init__(self, container_id: str, bundle: str, supervisor: Supervisor, hierarchies: Hierarchies) -> None:
        self.id = container_id
        self.bundle = bundle  # directory of config.json
        self.supervisor = supervisor
        self.hierarchies = hierarchies
        self.rootfs = -1
        self.images: tuple[str, ...] = ()  # mounted images, by their source in config.json
        self.mount_points: tuple[MountPoint, ...] = ()  # of crispd's request
        self.trees: dict[str, int] = {}  # their mounts, as long as the container has not exited
        self.spec: oci.Spec | None = None  # as last read
        self.content = b""  # config.json, if it was read ahead of the start
        self.mappings: userns.IDMappings | None = None  # of the container's user namespace
        self.filter = b""  # seccomp program
        self.filter_flags = 0
        self.hooks: ContainerHooks | None = None
        self.cgroup: Cgroup | None = None
        self._limits: oci.Resources | None = None  # with which it was made
        self.pid = 0
        self.pidfd = -1
        self._planned_cgroup = ""
        self.holder_pid = 0
        self._placeholder = -1  # placeholder in the container's scope until the container's own process is in it
        self.sandbox_cgroup: Cgroup | None = None  # where the processes are, if they are not in `cgroup`
        self.oom_kills_above = 0  # OOM kills in the parent cgroup before the container started

    # -- mounts -------------------------------------------------------------------------------------------------------

    def mount(self, call: Create) -> None:
        """Mount the rootfs and the images. Raises RuntimeCoreError; `release` unmounts what was mounted."""
        self.images, self.mount_points = tuple(call.images), call.mount_points
        self.rootfs = self._mount_rootfs(call.lower, call.upper, call.work, call.label)
        for name, image in call.images.items():
            self.trees[name] = self._mount_image(image)
        check_mount_points(self.rootfs, call.mount_points, self.trees)

    def _mount_rootfs(self, lower: Sequence[str], upper: str, work: str, label: str) -> int:
        users_of_pod = self.supervisor.user_namespace
        if users_of_pod < 0 and not overlay.are_elsewhere(lower):
            return overlay.mount_overlay(lower, upper, work, label)
        return overlay.mount_cloned_overlay(
            lower, upper, work, users_of_pod, self.supervisor.empty_mount_namespace, label
        )

    def _mount_image(self, image: ImageMount) -> int:
        users_of_pod, template = self.supervisor.user_namespace, self.supervisor.empty_mount_namespace
        try:
            with failing("mount", "image"):
                return overlay.mount_image(image.lower, image.sub_path, users_of_pod, template, image.label)
        except RuntimeCoreError as error:
            if isinstance(error, OperationFailed) and error.operation == OPEN_IN_IMAGE:
                raise
            raise ImageMountFailed(f"mount image: {error}") from error

    def find_user(self, call: Create) -> Identity:
        """Look the user up in the rootfs. Raises UserNotFound."""
        user = call.user
        return users.resolve(self.rootfs, user.user, user.group, user.supplemental, merge=user.merge)

    # -- succession ---------------------------------------------------------------------------------------------------

    def kept(self) -> dict[str, int]:
        """Return the descriptors that a successor needs as long as the container was not started."""
        fds = {"rootfs": self.rootfs} if self.rootfs >= 0 else {}
        if self._placeholder >= 0:
            fds["holder"] = self._placeholder
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._placeholder, OUTLIVE)
        return fds | {f"{_TREE}{name}": tree for name, tree in self.trees.items()}

    def succeed(self, estate: ContainerEstate, fds: dict[str, int]) -> None:
        """Take over the descriptors that an earlier shim held, and its cgroup."""
        self.images, self.mount_points = tuple(estate.create.images), estate.create.mount_points
        self.rootfs = fds.pop("rootfs", -1)
        self._placeholder, self.holder_pid = fds.pop("holder", -1), estate.holder
        self._planned_cgroup = estate.create.cgroup
        self.pid, self.pidfd = estate.pid, fds.pop("pidfd", -1)
        for name in [name for name in fds if name.startswith(_TREE)]:
            self.trees[name.removeprefix(_TREE)] = fds.pop(name)
        if estate.cgroup:
            self.cgroup = Cgroup.at(self.hierarchies, estate.cgroup)
            self.supervisor.uses_cgroup(self.cgroup)
        self.oom_kills_above = estate.oom_kills_above

    def planned_cgroup(self) -> Cgroup | None:
        """Return the cgroup that a start of the container would make, if that is known yet."""
        path = self._planned_cgroup
        if not path:
            try:
                with open(os.path.join(self.bundle, "config.json"), "rb") as file:
                    path = json.load(file)["linux"]["cgroupsPath"]
            except (OSError, ValueError, KeyError, TypeError):
                return None
        return Cgroup.at(self.hierarchies, path) if path else None

    def succeed_running(self, estate: ContainerEstate, program: bytes) -> None:
        """Read what is needed of config.json to run more processes in the container. Raises RuntimeCoreError."""
        spec, process = self.read_spec()
        if estate.oom_score_adj:
            self.spec = replace(spec, process=replace(process, oom_score_adj=estate.oom_score_adj))
        self.mappings = userns.mappings_of(spec)
        self.hooks = ContainerHooks(spec, self.id, self.bundle, self.supervisor, ran=estate.hooks_ran)
        self.filter = program
        self.filter_flags = estate.start.filter_flags if estate.start is not None else 0

    # -- config.json --------------------------------------------------------------------------------------------------

    def read_spec(self, *, ahead: bool = False) -> tuple[oci.Spec, oci.Process]:
        """Read config.json, perhaps ahead of the start. Raises RuntimeCoreError if it cannot be started.

        The start gets the same object if the file is still the same.
        """
        with open(os.path.join(self.bundle, "config.json"), "rb") as file:
            content = file.read()
        spec = self.spec if content == self.content else None
        if spec is None:
            spec = parse(json.loads(content))
        if spec.process is None:
            raise RuntimeCoreError("config.json: process: missing")
        self._require_living_namespaces(spec)
        self.spec, self.content = spec, content if ahead else b""
        return spec, spec.process

    def _require_living_namespaces(self, spec: oci.Spec) -> None:
        """Refuse namespaces of processes that have exited: their pids may belong to other processes by now."""
        for namespace in spec.linux.namespaces:
            match = _NAMESPACE_OF.fullmatch(namespace.path)
            if match and not self.supervisor.is_child(int(match[1])):
                raise OperationFailed(f"join {namespace.type} namespace", namespace.path, errno.ESRCH)

    # -- cgroup -------------------------------------------------------------------------------------------------------

    def make_cgroup(self, path: str, resources: oci.Resources, undo: contextlib.ExitStack | None = None) -> Cgroup:
        """Create the container's cgroup with its limits, unless that was done ahead. Raises RuntimeCoreError."""
        cgroup = Cgroup.at(self.hierarchies, path)
        if self.cgroup is not None and not (self._limits is resources and cgroup.is_ready()):
            with contextlib.suppress(RuntimeCoreError):  # its limits are others by now
                self.cgroup.remove()
            self.cgroup = None
        if self.cgroup is None:
            self.supervisor.uses_cgroup(cgroup)
            cgroup.create(resources)
            self.cgroup, self._limits = cgroup, resources
        if undo is not None:
            undo.callback(self.remove_cgroup)
        self.oom_kills_above = cgroup.oom_kills_above()
        return cgroup

    def remove_cgroup(self, *, delay: float = 0.002) -> None:
        """Remove the cgroup. If it is busy, try again later."""
        if self.cgroup is None:
            return
        try:
            self.cgroup.remove()
        except RuntimeCoreError as error:
            # Dying processes leave their cgroup slightly later than their parent gets SIGCHLD.
            if delay < _CGROUP_PATIENCE:
                self.supervisor.later(delay, lambda: self.remove_cgroup(delay=2 * delay))
            else:
                complain(f"could not remove the cgroup of container {self.id}: {error}")
            return
        self.cgroup = None

    def was_oom_killed(self, signal_number: int) -> bool:
        """Return whether the kernel killed a process in the cgroup for memory. `signal_number` ended the init."""
        assert self.cgroup is not None
        if self.sandbox_cgroup is not None:
            return signal_number == signal.SIGKILL and self.sandbox_cgroup.oom_kills() > 0
        if self.cgroup.oom_kills() > 0:
            return True
        # systemd may already have removed the empty scope and its counter. The slice has counted too.
        killed = signal_number == signal.SIGKILL and self.cgroup.is_gone()
        return killed and self.cgroup.oom_kills_above() > self.oom_kills_above

    def hold_scope(self) -> int:
        """Start a placeholder process for a scope, and return its pid."""
        self.holder_pid, self._placeholder = self.supervisor.start_holder()
        return self.holder_pid

    def leave_scope(self) -> None:
        """End the placeholder: the container's own process is in the scope."""
        if self._placeholder >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._placeholder, signal.SIGKILL)
            os.close(self._placeholder)
            self._placeholder = -1

    # -- init ---------------------------------------------------------------------------------------------------------

    def take_init(self, pid: int, pidfd: int) -> None:
        """Make a process the container's init, in place of the previous one."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.pid, self.pidfd = pid, pidfd

    def follow_init(self, ended: Callable[[int], None]) -> None:
        """Call back with the exit status of an init that an earlier shim has made."""
        self.supervisor.follow(self.pid, self.pidfd, ended)

    def signal_init(self, number: int) -> None:
        """Send a signal to the init. Does nothing if it is gone."""
        if self.pid and self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> None:
        """Kill the init and every process in the cgroup."""
        self.signal_init(signal.SIGKILL)
        if self.cgroup is not None:
            with contextlib.suppress(RuntimeCoreError):
                self.cgroup.kill_in_pod()

    def has_own_pid_namespace(self) -> bool:
        namespace = self.spec.linux.namespace("pid") if self.spec else None
        return namespace is not None and not namespace.path

    def release(self) -> None:
        """Close all descriptors. This unmounts detached mounts."""
        self.leave_scope()
        userns.close_all(self.trees.values())
        self.trees = {}
        for attribute in ("rootfs", "pidfd"):
            fd = getattr(self, attribute)
            if fd >= 0:
                os.close(fd)
                setattr(self, attribute, -1)
