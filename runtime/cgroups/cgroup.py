"""Manages the cgroup of one container or pod in all hierarchies at once."""

from __future__ import annotations

import errno
import os

from runtime.cgroups import files, processes, tree
from runtime.cgroups.limits import Group, Write
from runtime.errors import NotSupported, OperationFailed, RuntimeCoreError, SpecError, failing
from runtime.light import contextlib, dataclass, replace
from runtime.spec.values import Resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.cgroups.hierarchies import Hierarchies

SHIM_CGROUP = "/crisp-shims"  # of zygotes and shims with the cgroupfs driver; outside of all pods' cgroups
WORKERS_CGROUP = "/crisp-layers"  # likewise, of the processes that unpack images
_DELEGATED = frozenset({"cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma"})
_OWNERS_FILES_LIST = "/sys/kernel/cgroup/delegate"  # since Linux 4.15
_OWNERS_FILES = ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads")


class CgroupInUse(RuntimeCoreError):
    """The cgroup is already in use: it contains processes or is frozen."""


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The cgroup at `path`, which is relative to the hierarchies' mount points and starts with a slash. No I/O.

    `apart` lists mount points where a joining process goes to a different path.

    Every method raises `OperationFailed`, which names the file and the refused value.
    """

    hierarchies: Hierarchies
    path: str
    apart: tuple[tuple[str, str], ...] = ()

    @classmethod
    def at(cls, hierarchies: Hierarchies, path: str) -> Cgroup:
        """Return the cgroup at that path, relative to the hierarchies' mount points. Raises `SpecError`; no I/O."""
        parts = [part for part in path.split("/") if part and part != "."]
        if not parts or ".." in parts:
            raise SpecError("linux.cgroupsPath", f"expected a path below the root, got {path!r}")
        return cls(hierarchies, "/" + "/".join(parts))

    def directory(self, controller: str) -> str:
        """Return the directory with the controller's files, of either version. Raises `NotSupported`."""
        home = self.hierarchies.home(controller)
        if not home:
            raise NotSupported("find", self.path, f"no {controller} cgroup controller")
        return home + self.path

    @property
    def unified(self) -> str:
        """The directory in the version 2 hierarchy, "" if the machine has none."""
        return self.hierarchies.unified and self.hierarchies.unified + self.path

    def create(self, resources: Resources) -> None:
        """Create the cgroup and its missing parents in all hierarchies and set the limits. Undone on failure.

        New parents are marked for `remove_made_parents`. An existing empty cgroup is reused. Before anything is created
        it raises `SpecError` and `NotSupported` for limits that this machine cannot set. Raises `CgroupInUse` if the
        cgroup is frozen, because a process in it would never run.
        """
        plan = self._plan(resources, fresh=True)
        made: list[str] = []
        with contextlib.ExitStack() as undo:
            undo.callback(self.remove_made_parents)  # another container's parents, if it has left meanwhile
            undo.callback(tree.remove_unused, made)
            for mountpoint in self.hierarchies.mountpoints():
                tree.make(mountpoint, self.path, made)
            if freezer := self.frozen_at():
                raise CgroupInUse(f"container's cgroup unexpectedly frozen: thaw `{freezer}` first")
            if cpuset := self.hierarchies.v1.get("cpuset"):
                tree.inherit_cpuset(cpuset, self.path)
            self._enable_controllers(plan)
            self._apply(plan)
            self._filter_devices(resources)
            undo.pop_all()

    def update(self, resources: Resources) -> Callable[[], None]:
        """Change the given limits and keep the others. If the kernel refuses one, restore all of them.

        Returns a function that reverts the change as far as possible. Device rules are changed last and are not
        reverted.
        """
        plan = self._plan(resources, fresh=False)
        self._refuse_too_low_memory(resources)
        self._enable_controllers(plan)
        with contextlib.ExitStack() as undo:
            for group in plan:
                undo.callback(self._restore, tuple(self._now(write) for write in group))
                self._apply([group])
            self._filter_devices(resources)
            done = undo.pop_all()
        return done.close

    def delegate(self, uid: int) -> None:
        """Give a user the version 2 cgroup and those of its files that the kernel lists for delegation.

        The limits stay root's. When the caller is an unprivileged user, who owns the cgroup already, errors are
        ignored.
        """
        with failing("delegate", self.unified), contextlib.suppress(PermissionError):
            listed = os.path.exists(_OWNERS_FILES_LIST)
            names = files.read(_OWNERS_FILES_LIST).split() if listed else _OWNERS_FILES
            os.chown(self.unified, uid, -1)
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    os.chown(f"{self.unified}/{name}", uid, -1)

    def join_self(self, *, unified: bool = True) -> None:
        """Move the calling single-threaded process into the cgroup; into version 2 only if `unified`.

        In version 1 the thread is moved instead of the process. Moving a process takes a lock that blocks all forks on
        the machine (cgroup_threadgroup_rwsem), and a child with one thread is wholly moved this way.
        """
        self._admit("0", unified=unified)

    def leave_self(self) -> None:
        """Move the calling single-threaded process to the cgroup above, and remove this one if it was the last in it.

        For one that is about to end. Never raises.
        """
        if not self.exists():
            return
        with contextlib.suppress(OperationFailed):
            Cgroup(self.hierarchies, os.path.dirname(self.path).rstrip("/")).join_self()  # `at` refuses the root
            self.remove_if_unused()

    def admit(self, pid: int) -> None:
        """Move another process, which has a single thread, into the cgroup."""
        self._admit(str(pid), unified=True)

    def _admit(self, pid: str, *, unified: bool) -> None:
        for path in self.task_files():
            files.write(path, pid)
        if unified and self.unified:
            files.write(self._joined(self.hierarchies.unified) + "/cgroup.procs", pid)

    def task_files(self) -> list[str]:
        """What a thread's number is written to ("0": the writer's) for joining in version 1."""
        return [self._joined(mountpoint) + "/tasks" for mountpoint in dict.fromkeys(self.hierarchies.v1.values())]

    @property
    def joined_unified(self) -> str:
        """The directory in the version 2 hierarchy of who joins, "" where the machine has none."""
        return self.hierarchies.unified and self._joined(self.hierarchies.unified)

    def _joined(self, mountpoint: str) -> str:
        return mountpoint + dict(self.apart).get(mountpoint, self.path)

    def for_exec(self, init: int) -> Cgroup:
        """Return the cgroup for an exec: where the container's init is, if that is not this one in each hierarchy.

        In version 1 systemd may have moved it up: Delegate= of its scope does not cover the devices controller, and
        when no neighbour has device rules any more, systemd moves all processes to a cgroup above and removes this one.

        In version 2 it may be below: a cgroup that enables controllers for its children cannot contain processes itself
        (EBUSY). Such a container runs a service manager, or containers of its own.
        """
        apart = (*self._removed_by_systemd(), *self._managed_within(init))
        return replace(self, apart=(*self.apart, *apart)) if apart else self

    def _removed_by_systemd(self) -> tuple[tuple[str, str], ...]:
        home, path = self.hierarchies.v1.get("devices"), self.path
        if home is None or os.path.isdir(home + path):
            return ()
        while path and not os.path.isdir(home + path):
            path = path.rpartition("/")[0]
        return ((home, path),)

    def _managed_within(self, init: int) -> tuple[tuple[str, str], ...]:
        if not self.unified or not files.read(self.unified + "/cgroup.subtree_control"):
            return ()
        lines = files.read(f"/proc/{init}/cgroup").splitlines()
        path = next((line[3:] for line in lines if line.startswith("0::")), "")
        return ((self.hierarchies.unified, path),) if path.startswith(f"{self.path}/") else ()

    def clone_fd(self) -> int | None:
        """Return a descriptor for CLONE_INTO_CGROUP (clone3(2)), which the caller closes. None without version 2.

        Useless after `kill`: since cgroup.kill catches forks in flight (seen on Linux 6.18), the kernel kills every
        later clone into that cgroup at birth. Use a new cgroup or `join_self`.
        """
        if not self.unified:
            return None
        path = self.joined_unified
        try:
            return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise OperationFailed.of("open", path, error) from error

    def _open_unified(self, name: str, flags: int) -> int | None:
        if not self.unified:
            return None
        try:
            return os.open(self.unified + name, flags | os.O_CLOEXEC)
        except OSError as error:
            raise OperationFailed.of("open", self.unified + name, error) from error

    def pids(self) -> list[int]:
        """Return the processes in the cgroup and below it."""
        directory = self._tracking_v1() or self.unified
        return processes.pids(directory) if directory else []

    def is_populated(self) -> bool:
        """Return whether there is a process in the cgroup or below it, in either version.

        False if it does not exist.
        """
        if self.unified and processes.populated(self.unified):
            return True
        directory = self._tracking_v1()
        return bool(directory) and os.path.isdir(directory) and bool(processes.pids(directory))

    def set_oom_score_adj(self, value: int) -> bool:
        """Set the OOM score adjustment of every process. False if the caller lacks the capability for it."""
        directory = self._tracking_v1() or self.unified
        return bool(directory) and processes.set_oom_score_adj(directory, self.path, value)

    def kill(self) -> None:
        """Send SIGKILL to every process in the cgroup and below it. They may still be exiting on return."""
        processes.kill(self.unified, self._tracking_v1(), self._freezer())

    def kill_in_pod(self) -> None:
        """Kill as `kill` does. If the parent cgroup, a pod's, is frozen, thaw it so that the processes can die."""
        self.kill()
        if self.kept_by():
            replace(self, path=os.path.dirname(self.path)).thaw()

    def wait_empty(self, timeout: float) -> bool:
        """Sleep until no process is left, at most `timeout` seconds. False: some are left."""
        if not self.unified:
            return processes.wait_gone(self.pids, timeout)
        return processes.wait_for(self.unified, "populated", 0, timeout)

    def freeze(self) -> None:
        """Stop every process. ETIMEDOUT if one does not stop in 2 s; then all run again."""
        if freezer := self._freezer():
            processes.freeze_v1(freezer)
        elif not self.unified:
            raise NotSupported("freeze", self.path, "crisp may not make cgroups here")
        else:
            processes.freeze_v2(self.unified)

    def thaw(self) -> None:
        """Let frozen processes continue, in both versions. Freezers of the cgroups below are not changed."""
        if freezer := self._freezer():
            processes.thaw_v1(freezer)
        if self.unified and (not freezer or processes.is_frozen_v2(self.hierarchies.unified, self.path)):
            processes.thaw_v2(self.unified)

    def frozen_at(self) -> str:
        """Return the directory whose freezer stops the cgroup's processes: its own or an ancestor's; "" for none."""
        freezer = self.hierarchies.v1.get("freezer")
        found = processes.frozen_at_v1(freezer, self.path) if freezer else ""
        if not found and self.hierarchies.unified:
            found = processes.frozen_at_v2(self.hierarchies.unified, self.path)
        return found

    def kept_by(self) -> str:
        """Return the ancestor whose version 1 freezer keeps killed processes from dying, "" for none."""
        if not (freezer := self._freezer()) or not processes.is_frozen_v1(freezer):
            return ""
        return processes.frozen_at_v1(self.hierarchies.v1["freezer"], self.path)

    def freezer_directory(self) -> str:
        """Return the cgroup's directory in the hierarchy that freezes its processes; "" if none does."""
        return self._freezer() or self.unified

    def is_frozen(self) -> bool:
        """Return whether the processes are stopped by this cgroup's freezers or an ancestor's. False if it is gone."""
        if (freezer := self._freezer()) and processes.is_frozen_v1(freezer):
            return True
        return bool(self.unified) and processes.is_frozen_v2(self.hierarchies.unified, self.path)

    def oom_kills(self) -> int:
        """Return how many processes the kernel killed for the memory limit; 0 without a counter or if it is gone."""
        if memory := self.hierarchies.v1.get("memory"):
            return files.counter(memory + self.path + "/memory.oom_control", "oom_kill")
        return files.counter(self.unified + "/memory.events", "oom_kill") if self.unified else 0

    def oom_kills_above(self) -> int:
        """Return the OOM kills in the parent and everything below it; 0 on version 1, which does not sum them up."""
        if not self.unified or "memory" in self.hierarchies.v1:
            return 0
        return files.counter(os.path.dirname(self.unified) + "/memory.events", "oom_kill")

    def is_gone(self) -> bool:
        """Return whether the cgroup was removed from the version 2 hierarchy, as systemd does with an empty scope."""
        return bool(self.unified) and not os.path.isdir(self.unified)

    def remove(self) -> None:
        """Remove the cgroup and those below it from all hierarchies. Missing ones are fine; raises EBUSY last."""
        failures: list[OperationFailed] = []
        for mountpoint in self.hierarchies.mountpoints():
            try:
                tree.remove(mountpoint + self.path)
            except OperationFailed as failure:
                failures.append(failure)
        if failures:
            raise failures[0]

    def remove_if_unused(self) -> None:
        """Remove the cgroup from every hierarchy where it has neither processes nor child cgroups."""
        tree.remove_unused([mountpoint + self.path for mountpoint in self.hierarchies.mountpoints()])

    def remove_made_parents(self) -> None:
        """Remove the empty cgroups above this one that `create` made, in this process or another.

        The last user of such a parent removes it: call this after `remove`. Cgroups made by others stay. Never raises.
        """
        above = os.path.dirname(self.path)
        for mountpoint in self.hierarchies.mountpoints():
            tree.remove_made(mountpoint, above)

    def exists(self) -> bool:
        """Return whether the cgroup's directory exists in any hierarchy."""
        return any(os.path.isdir(mountpoint + self.path) for mountpoint in self.hierarchies.mountpoints())

    def is_ready(self) -> bool:
        """Return whether the cgroup's directory exists in all hierarchies, and none is frozen."""
        there = all(os.path.isdir(mountpoint + self.path) for mountpoint in self.hierarchies.mountpoints())
        return there and not self.frozen_at()

    def _tracking_v1(self) -> str:
        """Return a version 1 directory that lists every process of the cgroup, "" if only version 2 does."""
        if self.hierarchies.pure_v2:
            return ""
        homes = self.hierarchies.v1
        if not homes:
            return ""
        return next(homes[name] for name in ("freezer", "pids", "memory", *homes) if name in homes) + self.path

    def _freezer(self) -> str:
        freezer = self.hierarchies.v1.get("freezer")
        return freezer + self.path if freezer else ""

    def _plan(self, resources: Resources, *, fresh: bool) -> list[Group]:
        def current(file: str) -> str:
            return "max" if fresh else files.read(f"{self.unified}/{file}")

        if self.hierarchies.pure_v2:
            from runtime.cgroups import v2  # imported late: most machines need one version's plan only

            groups = v2.plan(resources, current)
        else:
            from runtime.cgroups import v1

            groups = v1.plan(resources)
            needed = {group[0].controller for group in groups} - self.hierarchies.v1.keys()
            if moved := (needed | ({"io"} if "blkio" in needed else set())) & self.hierarchies.unified_controllers:
                gone = moved | ({"blkio"} if "io" in moved else set())
                groups = [group for group in groups if group[0].controller not in gone]
                from runtime.cgroups import v2

                groups += v2.plan(resources, current, moved)
        return [group for group in groups if self._possible(group)]

    def _possible(self, group: Group) -> bool:
        for write in group:
            if write.controller and not self.hierarchies.home(write.controller):
                if write.controller == "devices" and self.unified:
                    return False  # `_filter_devices` applies the rules
                if not (write.optional or self.hierarchies.restricted):
                    raise NotSupported(
                        "set", f"`{write.file}` to `{write.value}`", f"no {write.controller} cgroup controller"
                    )
                return False
        return True

    def _enable_controllers(self, plan: list[Group]) -> None:
        if not self.unified:
            return
        if self.hierarchies.pure_v2:
            wanted = self.hierarchies.unified_controllers & _DELEGATED
        else:
            wanted = self.hierarchies.unified_controllers.intersection(group[0].controller for group in plan)
            wanted -= self.hierarchies.v1.keys()
        if wanted:
            tree.enable_controllers(self.hierarchies.unified, self.path, wanted)

    def _apply(self, plan: list[Group]) -> None:
        for group in plan:
            try:
                for write in group:
                    self._write(write)
            except OperationFailed as failure:
                if failure.errno != errno.EINVAL or len(group) < 2:
                    raise
                for write in reversed(group):
                    self._write(write)

    def _now(self, write: Write) -> Write | None:
        """Return the write that would restore the file's value; None if it cannot be read or is no single value."""
        for each in filter(None, (write, write.fallback)):
            directory = (self.hierarchies.home(each.controller) or self.hierarchies.unified) + self.path
            try:
                value = files.read(f"{directory}/{each.file}")
            except OperationFailed:
                continue
            return None if "\n" in value else replace(each, value=value, fallback=None)
        return None

    def _restore(self, group: tuple[Write | None, ...]) -> None:
        with contextlib.suppress(OperationFailed, NotSupported):
            self._apply([tuple(filter(None, group))])

    def _write(self, write: Write) -> None:
        directory = (self.hierarchies.home(write.controller) or self.hierarchies.unified) + self.path
        try:
            files.write(f"{directory}/{write.file}", write.value)
        except OperationFailed as failure:
            if failure.errno != errno.ENOENT or not os.path.isdir(directory):
                raise
            if write.fallback:
                self._write(write.fallback)
            elif not write.optional:
                raise self._without_file(write, directory) from failure

    def _without_file(self, write: Write, directory: str) -> NotSupported:
        target = f"`{write.file}` to `{write.value}`"
        if directory == self.unified and write.controller:
            enabled = files.read(directory + "/cgroup.controllers").split()
            if write.controller not in enabled:
                return NotSupported("set", target, f"the {write.controller} controller is not enabled in `{directory}`")
        return NotSupported("set", target, f"no such file in `{directory}`")

    def _filter_devices(self, resources: Resources) -> None:
        if not resources.devices or "devices" in self.hierarchies.v1 or self.hierarchies.restricted:
            return
        fd = self._open_unified("", os.O_RDONLY | os.O_DIRECTORY)
        assert fd is not None, "`_plan` refuses device rules if neither version can filter"
        try:
            from runtime.cgroups import device_filter as devices_bpf

            devices_bpf.replace(fd, resources.devices)
        finally:
            os.close(fd)

    def _refuse_too_low_memory(self, resources: Resources) -> None:
        """Refuse a limit below the present use. Version 2 would kill processes; version 1 refuses by itself (EBUSY)."""
        memory = resources.memory
        if not (memory and memory.check_before_update and memory.limit and memory.limit > 0):
            return
        if "memory" in self.hierarchies.v1 or (self.hierarchies.restricted and not self.hierarchies.home("memory")):
            return
        directory = self.directory("memory")
        usage = int(files.read(f"{directory}/memory.current"))
        if usage > memory.limit:
            with contextlib.suppress(OperationFailed):  # EAGAIN: it cannot free that much; ENOENT: before Linux 5.19
                files.write(f"{directory}/memory.reclaim", str(usage - memory.limit))
            usage = int(files.read(f"{directory}/memory.current"))
        if usage > memory.limit:
            target = f"of `{self.path}` to `{memory.limit}` below the `{usage}` in use"
            raise OperationFailed("set memory limit", target, errno.EBUSY)
