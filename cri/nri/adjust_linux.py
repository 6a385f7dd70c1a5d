"""Converts adjustments of `linux` and of hooks to the form of config.json (OCI runtime-spec)."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from cri.nri import checks
from cri.nri.errors import NriError
from cri.nri.owners import Owners
from cri.nri.v1alpha1 import api_pb2 as nri
from pods.oci.hook_files import checked_hook
from runtime.seccomp.compile import ACTIONS, FLAGS, OPERATORS

Named = Callable[[str, str, list[str]], Iterator[str]]  # (plugin, field, names); yields the names to remove
_TYPES: Final = {stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p"}
_STAGES: Final = {
    "prestart": "prestart",
    "create_runtime": "createRuntime",
    "create_container": "createContainer",
    "start_container": "startContainer",
    "poststart": "poststart",
    "poststop": "poststop",
}
_REMOVE: Final = "-"


def add_hooks(document: dict[str, Any], plugin: str, hooks: nri.Hooks, owners: Owners) -> None:
    """Append hooks to those of the document."""
    for ours, theirs in _STAGES.items():
        for hook in getattr(hooks, ours):
            owners.own(plugin, "hooks")
            entry: dict[str, Any] = {"path": hook.path}
            if hook.args:
                entry["args"] = list(hook.args)
            if hook.env:
                entry["env"] = list(hook.env)
            if hook.HasField("timeout"):
                entry["timeout"] = hook.timeout.value
            try:
                entry = checked_hook(entry)
            except ValueError as error:
                raise NriError(f"hooks.{ours}: {error}") from error
            document.setdefault("hooks", {}).setdefault(theirs, []).append(entry)


def set_devices(linux: dict[str, Any], plugin: str, devices: Iterable[nri.LinuxDevice], named: Named) -> None:
    """Add device nodes, and the cgroup rules that allow them."""
    wanted = list(devices)
    there = {node["path"]: node for node in linux.get("devices", ())}
    rules = linux.setdefault("resources", {}).setdefault("devices", [])
    for path in named(plugin, "linux.devices", [device.path for device in wanted]):
        there.pop(path, None)
    for device in wanted:
        if device.path.startswith(_REMOVE):
            continue
        node = _node(device)
        there[device.path] = node
        if node["type"] != "p":  # cgroups have no rules for FIFOs
            rules.append({"allow": True, "type": node["type"], "major": node["major"], "minor": node["minor"],
                          "access": "rwm"})  # fmt: skip
    linux["devices"] = list(there.values())


def _node(device: nri.LinuxDevice) -> dict[str, Any]:
    """Make a device node. Values that the plugin omits are taken from the host's node."""
    checks.below_root("linux.devices: path", device.path)
    kind, major, minor, mode = device.type, device.major, device.minor, device.file_mode.value
    if not kind:
        try:
            status = os.stat(device.path)
        except OSError as error:
            raise NriError(f"linux.devices {device.path}: {error.strerror}") from error
        kind = _TYPES.get(stat.S_IFMT(status.st_mode), "")
        major, minor, mode = os.major(status.st_rdev), os.minor(status.st_rdev), stat.S_IMODE(status.st_mode)
    if kind not in _TYPES.values():
        raise NriError(f"linux.devices {device.path}: type {kind!r} must be b, c or p")
    return {
        "path": device.path,
        "type": kind,
        "major": major,
        "minor": minor,
        "fileMode": stat.S_IMODE(mode) or 0o666,
        "uid": device.uid.value,
        "gid": device.gid.value,
    }


def set_namespaces(linux: dict[str, Any], plugin: str, wanted: Iterable[nri.LinuxNamespace], named: Named) -> None:
    there = {one["type"]: one for one in linux.get("namespaces", ())}
    wanted = list(wanted)
    for kind in named(plugin, "linux.namespaces", [one.type for one in wanted]):
        there.pop(kind, None)
    for one in wanted:
        if not one.type.startswith(_REMOVE):
            there[one.type] = {"type": one.type, **({"path": one.path} if one.path else {})}
    linux["namespaces"] = list(there.values())


def set_sysctls(linux: dict[str, Any], plugin: str, wanted: dict[str, str], named: Named) -> None:
    there = linux.setdefault("sysctl", {})
    for name in named(plugin, "linux.sysctl", list(wanted)):
        there.pop(name, None)
    kept = {name: value for name, value in wanted.items() if not name.startswith(_REMOVE)}
    checks.sysctls(kept)
    there.update(kept)


def set_net_devices(linux: dict[str, Any], plugin: str, wanted: dict[str, nri.LinuxNetDevice], named: Named) -> None:
    there = linux.setdefault("netDevices", {})
    for name in named(plugin, "linux.net_devices", list(wanted)):
        there.pop(name, None)
    for name, device in wanted.items():
        if not name.startswith(_REMOVE):
            there[name] = {"name": device.name} if device.name else {}


def seccomp(policy: nri.LinuxSeccomp) -> dict[str, Any]:
    """Return `linux.seccomp`."""
    where = "linux.seccomp_policy"
    checks.one_of(f"{where}.default_action", policy.default_action, ACTIONS)
    for flag in policy.flags:
        checks.one_of(f"{where}.flags", flag, FLAGS)
    profile: dict[str, Any] = {"defaultAction": policy.default_action}
    if policy.HasField("default_errno"):
        profile["defaultErrnoRet"] = policy.default_errno.value
    for ours, name in (
        ("architectures", "architectures"),
        ("flags", "flags"),
        ("listener_path", "listenerPath"),
        ("listener_metadata", "listenerMetadata"),
    ):
        if value := getattr(policy, ours):
            profile[name] = value if isinstance(value, str) else list(value)
    profile["syscalls"] = [_syscall(call, f"{where}.syscalls[{index}]") for index, call in enumerate(policy.syscalls)]
    return profile


def _syscall(call: nri.LinuxSyscall, where: str) -> dict[str, Any]:
    checks.one_of(f"{where}.action", call.action, ACTIONS)
    for one in call.args:
        checks.one_of(f"{where}.args.op", one.op, OPERATORS)
    rule: dict[str, Any] = {"names": list(call.names), "action": call.action}
    if call.HasField("errno_ret"):
        rule["errnoRet"] = call.errno_ret.value
    if call.args:
        rule["args"] = [
            {"index": one.index, "value": one.value, "valueTwo": one.value_two, "op": one.op} for one in call.args
        ]
    return rule


def io_priority(wanted: nri.LinuxIOPriority) -> dict[str, Any]:
    """Return `process.ioPriority`."""
    kind = checks.enum("linux.io_priority.class", nri.IOPrioClass, getattr(wanted, "class"))
    return {"class": kind, "priority": wanted.priority}


def scheduler(wanted: nri.LinuxScheduler) -> dict[str, Any]:
    """Return `process.scheduler`; 0 means not set."""
    numbers = {name: value for name in ("nice", "priority", "runtime", "deadline", "period")
               if (value := getattr(wanted, name))}  # fmt: skip
    flags = [checks.enum("linux.scheduler.flags", nri.LinuxSchedulerFlag, flag) for flag in wanted.flags]
    policy = checks.enum("linux.scheduler.policy", nri.LinuxSchedulerPolicy, wanted.policy)
    return {"policy": policy, **numbers, **({"flags": flags} if flags else {})}


def memory_policy(wanted: nri.LinuxMemoryPolicy) -> dict[str, Any]:
    """Return `linux.memoryPolicy`."""
    flags = [checks.enum("linux.memory_policy.flags", nri.MpolFlag, flag) for flag in wanted.flags]
    policy: dict[str, Any] = {"mode": checks.enum("linux.memory_policy.mode", nri.MpolMode, wanted.mode)}
    return policy | ({"nodes": wanted.nodes} if wanted.nodes else {}) | ({"flags": flags} if flags else {})
