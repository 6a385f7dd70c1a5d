"""Records which plugin set which field of a container, to detect conflicts and to inform validating plugins."""

from __future__ import annotations

from typing import Final

from cri.nri.errors import NriError
from cri.nri.v1alpha1 import api_pb2 as nri

# Names of fields, as in error messages, and NRI's numbers for them.
FIELDS: Final = {
    "annotations": nri.Annotations,
    "mounts": nri.Mounts,
    "hooks": nri.OciHooks,
    "linux.devices": nri.Devices,
    "CDI_devices": nri.CdiDevices,
    "env": nri.Env,
    "args": nri.Args,
    "linux.resources.memory.limit": nri.MemLimit,
    "linux.resources.memory.reservation": nri.MemReservation,
    "linux.resources.memory.swap": nri.MemSwapLimit,
    "linux.resources.cpu.shares": nri.CPUShares,
    "linux.resources.cpu.quota": nri.CPUQuota,
    "linux.resources.cpu.period": nri.CPUPeriod,
    "linux.resources.cpu.cpus": nri.CPUSetCPUs,
    "linux.resources.cpu.mems": nri.CPUSetMems,
    "linux.resources.pids": nri.PidsLimit,
    "linux.resources.hugepage_limits": nri.HugepageLimits,
    "linux.resources.unified": nri.CgroupsUnified,
    "linux.oom_score_adj": nri.OomScoreAdj,
    "rlimits": nri.Rlimits,
    "linux.io_priority": nri.IoPriority,
    "linux.seccomp_policy": nri.SeccompPolicy,
    "linux.namespaces": nri.Namespace,
    "linux.sysctl": nri.Sysctl,
    "linux.net_devices": nri.LinuxNetDevices,
    "linux.scheduler": nri.LinuxSched,
    "linux.memory_policy": nri.MemoryPolicy,
}
_SHARED: Final = {"hooks"}  # every plugin may add to them


class Owners:
    """The owners of one container's fields, and of the entries within compound fields."""

    def __init__(self) -> None:
        self._plugins: dict[tuple[str, str], str] = {}

    def own(self, plugin: str, field: str, name: str = "") -> None:
        """Record that the plugin sets a field. Raises NriError if another plugin has."""
        owner = self._plugins.setdefault((field, name), plugin)
        if owner != plugin and field not in _SHARED:
            raise NriError(f"{field}{' ' if name else ''}{name}: already set by plugin {owner}")

    def disown(self, field: str, name: str = "") -> None:
        self._plugins.pop((field, name), None)

    def has(self, field: str, name: str = "") -> bool:
        return (field, name) in self._plugins

    def described(self) -> nri.FieldOwners:
        """Return the owners as a message, for validating plugins."""
        message = nri.FieldOwners()
        for (field, name), plugin in self._plugins.items():
            number = FIELDS[field]
            if name:
                message.compound[number].owners[name] = plugin
            else:
                message.simple[number] = plugin
        return message
