"""Applies plugins' adjustments of a new container to its config.json."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Final

from cri.nri import checks
from cri.nri.adjust_linux import (
    add_hooks,
    io_priority,
    memory_policy,
    scheduler,
    seccomp,
    set_devices,
    set_namespaces,
    set_net_devices,
    set_sysctls,
)
from cri.nri.errors import NriError
from cri.nri.owners import Owners
from cri.nri.resources import refuse_others
from cri.nri.v1alpha1 import api_pb2 as nri
from pods import rules
from pods.oci.mounts import depth
from runtime.spec.values import is_bind

_REMOVE: Final = "-"  # prefix of a name: remove that entry
_BIND: Final = "bind"  # the type of a mount that gives none
_ADJUSTED: Final = {"annotations", "mounts", "env", "args", "hooks", "rlimits", "CDI_devices", "linux"}
_LINUX: Final = {
    "devices", "resources", "oom_score_adj", "io_priority", "seccomp_policy", "namespaces", "sysctl", "net_devices",
    "scheduler", "memory_policy",
}  # fmt: skip
_RESOURCES: Final = {"memory", "cpu", "hugepage_limits", "unified", "pids"}
_MEMORY: Final = {"limit", "reservation", "swap"}
_CPU: Final = {"shares", "quota", "period", "cpus", "mems"}


class Adjustments:
    """The adjustments of one container. What one plugin has set, no later plugin may set differently."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = copy.deepcopy(document)
        self.asked = nri.ContainerAdjustment()  # by all plugins
        self.owners = Owners()

    def apply(self, plugin: str, wanted: nri.ContainerAdjustment) -> None:
        """Apply a plugin's adjustments to `document`. Raises NriError for unsupported or invalid ones, and conflicts.

        CDI devices are only collected in `asked`: their specs are files, which the caller reads.
        """
        refuse_others(wanted, _ADJUSTED, "adjust")
        refuse_others(wanted.linux, _LINUX, "adjust.linux")
        self._annotations(plugin, wanted)
        self._environment(plugin, wanted)
        self._mounts(plugin, wanted)
        self._process(plugin, wanted)
        self._resources(plugin, wanted.linux.resources)
        self._linux(plugin, wanted.linux)
        add_hooks(self.document, plugin, wanted.hooks, self.owners)
        for device in wanted.CDI_devices:
            checks.matching("CDI_devices", device.name, rules.CDI_DEVICE)
            self.owners.own(plugin, "CDI_devices", device.name)
        self.asked.MergeFrom(wanted)

    def _linux(self, plugin: str, wanted: nri.LinuxContainerAdjustment) -> None:
        linux, process = self.document["linux"], self.document["process"]
        if wanted.devices:
            set_devices(linux, plugin, wanted.devices, self._named)
        if wanted.namespaces:
            set_namespaces(linux, plugin, wanted.namespaces, self._named)
        if wanted.sysctl:
            set_sysctls(linux, plugin, dict(wanted.sysctl), self._named)
        if wanted.net_devices:
            set_net_devices(linux, plugin, dict(wanted.net_devices), self._named)
        there = {descriptor.name for descriptor, _ in wanted.ListFields()}
        for field, place, name, made in (
            ("seccomp_policy", linux, "seccomp", seccomp),
            ("memory_policy", linux, "memoryPolicy", memory_policy),
            ("io_priority", process, "ioPriority", io_priority),
            ("scheduler", process, "scheduler", scheduler),
        ):
            if field in there:
                self.owners.own(plugin, f"linux.{field}")
                place[name] = made(getattr(wanted, field))

    def _named(self, plugin: str, field: str, names: list[str]) -> Iterator[str]:
        """Yield the names to remove (first: a name that is removed and set is replaced), then own the names to set."""
        for name in names:
            if name.startswith(_REMOVE):
                self.owners.disown(field, name[1:])
                yield name[1:]
        for name in names:
            if not name.startswith(_REMOVE):
                self.owners.own(plugin, field, name)

    def _annotations(self, plugin: str, wanted: nri.ContainerAdjustment) -> None:
        annotations = self.document.setdefault("annotations", {})
        for name in self._named(plugin, "annotations", list(wanted.annotations)):
            annotations.pop(name, None)
        for name, value in wanted.annotations.items():
            if not name.startswith(_REMOVE):
                checks.annotation(name, value)
                annotations[name] = value

    def _environment(self, plugin: str, wanted: nri.ContainerAdjustment) -> None:
        process = self.document["process"]
        names = [entry.key for entry in wanted.env]
        variables = dict(entry.partition("=")[::2] for entry in process.get("env", ()))
        for name in self._named(plugin, "env", names):
            variables.pop(name, None)
        for entry in wanted.env:
            if not entry.key.startswith(_REMOVE):
                checks.variable(entry.key, entry.value)
                variables[entry.key] = entry.value
        process["env"] = [f"{name}={value}" for name, value in variables.items()]

    def _mounts(self, plugin: str, wanted: nri.ContainerAdjustment) -> None:
        mounts = {mount["destination"]: mount for mount in self.document.get("mounts", ())}
        for name in self._named(plugin, "mounts", [mount.destination for mount in wanted.mounts]):
            mounts.pop(name, None)
        for mount in wanted.mounts:
            if mount.destination.startswith(_REMOVE):
                continue
            _check_mount(mount)
            mounts.pop(mount.destination, None)
            mounts[mount.destination] = {
                "destination": mount.destination,
                "type": mount.type or _BIND,
                "source": mount.source,
                "options": list(mount.options),
            }
        self.document["mounts"] = sorted(mounts.values(), key=depth)

    def _process(self, plugin: str, wanted: nri.ContainerAdjustment) -> None:
        process = self.document["process"]
        if wanted.args:
            args = list(wanted.args)
            if args[0] == "":  # it replaces another plugin's arguments
                self.owners.disown("args")
                args = args[1:]
            if not args:
                raise NriError("args: must name a program")
            checks.unshown("args", args)
            self.owners.own(plugin, "args")
            process["args"] = args
        for limit in wanted.rlimits:
            self.owners.own(plugin, "rlimits", limit.type)
            kept = [one for one in process.get("rlimits", ()) if one["type"] != limit.type]
            process["rlimits"] = [*kept, {"type": limit.type, "hard": limit.hard, "soft": limit.soft}]
        if wanted.linux.HasField("oom_score_adj"):
            self.owners.own(plugin, "linux.oom_score_adj")
            checks.between("linux.oom_score_adj", wanted.linux.oom_score_adj.value, *rules.OOM_SCORES)
            process["oomScoreAdj"] = wanted.linux.oom_score_adj.value

    def _resources(self, plugin: str, wanted: nri.LinuxResources) -> None:
        where = "adjust.linux.resources"
        refuse_others(wanted, _RESOURCES, where)
        refuse_others(wanted.memory, _MEMORY, f"{where}.memory")
        refuse_others(wanted.cpu, _CPU, f"{where}.cpu")
        checks.resources(where, wanted)
        resources = self.document["linux"].setdefault("resources", {})
        for group, message in (("memory", wanted.memory), ("cpu", wanted.cpu)):
            for field, value in message.ListFields():
                self.owners.own(plugin, f"linux.resources.{group}.{field.name}")
                resources.setdefault(group, {})[field.name] = getattr(value, "value", value)
        memory = resources.get("memory", {})
        if wanted.memory.HasField("limit") and not self.owners.has("linux.resources.memory.swap"):
            memory.update({"swap": memory["limit"]} if "swap" in memory else {})  # as CRI's default: no swap
        for limit in wanted.hugepage_limits:
            self.owners.own(plugin, "linux.resources.hugepage_limits", limit.page_size)
            kept = [one for one in resources.get("hugepageLimits", ()) if one["pageSize"] != limit.page_size]
            resources["hugepageLimits"] = [*kept, {"pageSize": limit.page_size, "limit": limit.limit}]
        for name, value in wanted.unified.items():
            self.owners.own(plugin, "linux.resources.unified", name)
            resources.setdefault("unified", {})[name] = value
        if wanted.HasField("pids"):
            self.owners.own(plugin, "linux.resources.pids")
            resources["pids"] = {"limit": wanted.pids.limit}


def _check_mount(mount: nri.Mount) -> None:
    checks.below_root("mounts: destination", mount.destination)
    where = f"mounts {mount.destination!r}"
    checks.unshown(f"{where}: options", mount.options)
    if not rules.is_text(mount.source) or not rules.is_text(mount.type):
        raise NriError(f"{where}: source and type must not contain a NUL byte")
    if is_bind(mount.type or _BIND, mount.options) and not mount.source.startswith("/"):
        raise checks.refuse(f"{where}: source", mount.source, "must be an absolute path")
