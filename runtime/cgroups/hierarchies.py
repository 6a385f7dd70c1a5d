"""Finds the mounted cgroup hierarchies."""

from __future__ import annotations

import os
from types import MappingProxyType

from linux.user_namespaces import STARTED_IN_ONE
from runtime.cgroups import files
from runtime.errors import NotSupported, OperationFailed
from runtime.light import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

_V1_CONTROLLERS = frozenset(
    {
        "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb", "net_cls", "net_prio",
        "perf_event", "rdma", "misc", "name=systemd",
    }
)


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """Maps controllers to mount points. Co-mounted controllers ("cpu,cpuacct") share one.

    `unified` is the mount point of version 2, "" if it is not mounted; `unified_controllers` are its controllers.
    With both versions mounted (hybrid), version 2 tracks and kills processes, and version 1 limits them, except for
    controllers that only version 2 has.
    """

    v1: Mapping[str, str]
    unified: str
    unified_controllers: frozenset[str]
    # Whether limits that cannot be set are left out, and devices are not filtered: see `usable`.
    restricted: bool = False

    @classmethod
    def usable(cls) -> Hierarchies:
        """Return the hierarchies in which this process may make cgroups.

        In a user namespace these are the ones whose root it owns, perhaps none. There nobody may filter devices.
        """
        if not STARTED_IN_ONE:
            return cls.detect()
        try:
            found = cls.detect()
        except NotSupported:
            return NO_HIERARCHIES
        v1 = {name: home for name, home in found.v1.items() if name != "devices" and os.access(home, os.W_OK)}
        unified = found.unified if found.unified and os.access(found.unified, os.W_OK) else ""
        controllers = found.unified_controllers if unified else frozenset()
        return cls(MappingProxyType(v1), unified, controllers, restricted=True)

    @classmethod
    def detect(cls, mountinfo_text: str | None = None, root: str = "") -> Hierarchies:
        """Read /proc/self/mountinfo (proc_pid_mountinfo(5)) or the given text; `root` is prepended to mount points.

        Raises `NotSupported` if no hierarchy is mounted.
        """
        text = files.read("/proc/self/mountinfo") if mountinfo_text is None else mountinfo_text
        v1: dict[str, str] = {}
        unified = ""
        for line in text.splitlines():
            mount, _, filesystem = line.partition(" - ")
            kind, _, options = filesystem.split(" ", 2)
            if kind not in ("cgroup", "cgroup2"):
                continue
            mountpoint = root + _unescape(mount.split(" ")[4])
            if kind == "cgroup2":
                unified = unified or mountpoint
            else:
                for controller in _V1_CONTROLLERS.intersection(options.split(",")):
                    v1.setdefault(controller, mountpoint)
        if not v1 and not unified:
            raise NotSupported("find", "cgroups", "no cgroup hierarchy is mounted")
        return cls(MappingProxyType(v1), unified, _controllers(unified))

    @property
    def pure_v2(self) -> bool:
        """Whether version 2 alone sets limits. A version 1 hierarchy that is only name=systemd does not count."""
        return bool(self.unified) and all(controller.startswith("name=") for controller in self.v1)

    def mountpoints(self) -> tuple[str, ...]:
        """Return every hierarchy's mount point, once each, the unified one last."""
        return tuple(dict.fromkeys((*self.v1.values(), self.unified) if self.unified else self.v1.values()))

    def home(self, controller: str) -> str:
        """Return the mount point of the controller's hierarchy, "" if the machine does not have the controller."""
        if controller in self.v1:
            return self.v1[controller]
        return self.unified if controller in self.unified_controllers else ""

    def only(self, controller: str) -> Hierarchies:
        """Return the one hierarchy that has the controller. Raises `NotSupported`."""
        if controller in self.v1:
            return Hierarchies(MappingProxyType({controller: self.v1[controller]}), "", frozenset(), self.restricted)
        if controller not in self.unified_controllers:
            raise NotSupported("find", "cgroups", f"no {controller} cgroup controller")
        return Hierarchies(MappingProxyType({}), self.unified, self.unified_controllers, self.restricted)


NO_HIERARCHIES: Final = Hierarchies(MappingProxyType({}), "", frozenset(), restricted=True)


def _controllers(unified: str) -> frozenset[str]:
    if not unified:
        return frozenset()
    try:
        return frozenset(files.read(os.path.join(unified, "cgroup.controllers")).split())
    except OperationFailed:
        return frozenset()


def _unescape(path: str) -> str:
    first, *others = path.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in others)
