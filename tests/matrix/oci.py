"""docs/oci.md: the members of config.json, from the typed configuration."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Final

from runtime.rootfs import plan as mounts
from runtime.seccomp import compile as seccomp
from runtime.spec import parse as spec_parse
from runtime.spec import values as spec
from tests.matrix.markers import markers
from tests.matrix.table import Row, Section, by_name, page

# Members whose JSON name is not the field's in camel case.
_NAMES: Final = {
    "exec_cpu_affinity": "execCPUAffinity",
    "io_class": "class",
    "kernel_tcp": "kernelTCP",
    "disable_oom_killer": "disableOOMKiller",
    "pids_limit": "pids.limit",
    "block_io": "blockIO",
    "class_id": "classID",
    "throttle_read_iops_device": "throttleReadIOPSDevice",
    "throttle_write_iops_device": "throttleWriteIOPSDevice",
    "net_devices": "netDevices",
}
# Values that are one row: none of their members means anything alone.
_WHOLE: Final = (
    spec.ConsoleSize, spec.Rlimit, spec.IOPriority, spec.IDMapping, spec.Hook, spec.TimeOffset, spec.Device,
    spec.DeviceRule, spec.WeightDevice, spec.ThrottleDevice, spec.HugepageLimit, spec.InterfacePriority,
    spec.RdmaLimit, spec.SeccompArg, spec.IntelRdt, spec.Personality, spec.Namespace,
)  # fmt: skip
_FLAGS: Final = (
    "ro rw suid nosuid dev nodev exec noexec atime noatime relatime norelatime strictatime nostrictatime diratime "
    "nodiratime symfollow nosymfollow"
).split()
_PROPAGATION: Final = "private slave shared unbindable".split()
OPTIONS: Final = {
    "bind, rbind": ["bind", "rbind"],
    "ro, nosuid, nodev, noexec, noatime, nosymfollow ...": _FLAGS,
    "rro, rnosuid, rnodev, rnoexec, rnoatime, rnosymfollow ...": [f"r{flag}" for flag in _FLAGS],
    "private, slave, shared, unbindable": _PROPAGATION,
    "rprivate, rslave, rshared, runbindable": [f"r{name}" for name in _PROPAGATION],
    "idmap, ridmap": ["idmap", "ridmap"],
    "defaults, async, silent ... (no effect)": sorted(mounts.IGNORED),
}
_NOT_SUPPORTED: Final[Mapping[str, str]] = {
    "linux.intelRdt": "refused, as crisp does not use resctrl",
}
_V1: Final = "with cgroup v1; refused with v2, which does not have this limit"
_NOTES: Final[Mapping[str, str]] = {
    "linux.resources.memory.kernel": "accepted without effect: kernels no longer have this limit",
    "linux.resources.memory.useHierarchy": "accepted without effect: cgroups are always hierarchical",
    "linux.resources.memory.kernelTCP": "with cgroup v1; ignored with v2",
    "linux.resources.memory.swappiness": "with cgroup v1; ignored with v2",
    "linux.resources.memory.disableOOMKiller": "with cgroup v1; ignored with v2",
    "linux.resources.cpu.realtimeRuntime": "with cgroup v1; ignored with v2",
    "linux.resources.cpu.realtimePeriod": "with cgroup v1; ignored with v2",
    "linux.resources.blockIO.leafWeight": "with cgroup v1; ignored with v2",
    "linux.resources.network.classID": _V1,
    "linux.resources.network.priorities": _V1,
    "linux.resources.unified": "with cgroup v2; refused with v1",
    "linux.mountLabel": "refused where SELinux is off",
    "linux.personality": "flags are refused; the specification defines none yet",
    "linux.namespaces[].type: mount": "new ones; a path is refused",
    "process.apparmorProfile": "refused where AppArmor is off",
    "process.selinuxLabel": "refused where SELinux is off",
    "linux.seccomp action: SCMP_ACT_NOTIFY": "by crisp-oci, except for sendmsg and as the default; crispd refuses it",
    "linux.netDevices{}.name": "with permanent addresses of global scope",
    "linux.rootfsPropagation": "for later mounts inside; the rootfs itself is not a peer of the host's",
}
_INTRODUCTION: Final = """
The members of the OCI runtime specification's `config.json` for Linux, as `runtime/spec/values.py` defines them. For
each the table says whether crisp's shims and `crisp-oci` support it, and which tests fail if they do not. Members that
are not listed are ignored, as the specification demands for unknown ones.
"""


def members() -> list[str]:
    """The JSON path of every member; `[]` stands for any entry of an array, `{}` for any name in a map."""
    return list(_members(spec.Spec, ""))


def _members(kind: type, prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(kind, vars(spec) | {"Mapping": Mapping})
    for field in dataclasses.fields(kind):
        path = prefix + _json_name(field.name)
        inner, suffix = _inside(hints[field.name])
        if inner is None or inner in _WHOLE:
            yield path
        else:
            yield from _members(inner, f"{path}{suffix}.")


def _json_name(field: str) -> str:
    return _NAMES.get(field) or re.sub(r"_(\w)", lambda match: match[1].upper(), field)


def _inside(hint: Any) -> tuple[type | None, str]:
    """The dataclass that a member's type holds, and what its path gets."""
    if dataclasses.is_dataclass(hint):
        return typing.cast(type, hint), ""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    for argument in arguments:
        if dataclasses.is_dataclass(argument):
            suffix = "[]" if origin is tuple else "{}" if origin is not None and issubclass(origin, Mapping) else ""
            return typing.cast(type, argument), suffix
    return None, ""


def choices() -> dict[str, list[str]]:
    """Rows for the values of members that name one of several things to do."""
    return {
        "linux.namespaces[].type": sorted(spec_parse.NAMESPACE_TYPES),
        "mounts[].options": [*OPTIONS, *_other_options(), "the file system's own"],
        "linux.seccomp action": sorted(seccomp.ACTIONS),
    }


def _other_options() -> list[str]:
    """Those that the groups leave out."""
    grouped = {option for group in OPTIONS.values() for option in group}
    return [option for option in mounts.known_options() if option not in grouped]


def sections() -> list[Section]:
    tests = by_name((name, marker.test) for marker in markers("oci") for name in marker.arguments)
    found = [Section("Members", tuple(_row(name, tests) for name in members()))]
    for title, names in choices().items():
        found.append(Section(f"{title}", tuple(_row(f"{title}: {name}", tests) for name in names)))
    return found


def _row(name: str, tests: Mapping[str, tuple[str, ...]]) -> Row:
    return Row(name, tests.get(name, ()), _NOT_SUPPORTED.get(name, ""), _NOTES.get(name, ""))


def marked() -> list[str]:
    return [name for marker in markers("oci") for name in marker.arguments]


def text() -> str:
    return page("config.json", _INTRODUCTION, "member", sections())
