"""The `linux` part of a container's configuration that limits it: cgroup path, resources, devices."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from pods.errors import InvalidArgument
from pods.model import ContainerConfig, Device, Resources, SandboxConfig

if TYPE_CHECKING:
    from pods.host import HostFacts

_DEFAULT_PARENT: Final = "/crisp"
# What every container may use and make: the nodes that the runtime puts into /dev, terminals, and mknod of anything.
_DEFAULT_RULES: Final[tuple[dict[str, Any], ...]] = (
    {"allow": False, "access": "rwm"},
    *({"allow": True, "type": kind, "access": "m"} for kind in "cb"),
    *(
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2))
    ),
    {"allow": True, "type": "c", "major": 136, "access": "rwm"},
)


def cgroup_parent(sandbox_id: str, config: SandboxConfig) -> str:
    """The pod's cgroup. Raises InvalidArgument for one that is no cgroupfs path."""
    parent = config.cgroup_parent
    if not parent:
        return f"{_DEFAULT_PARENT}/{sandbox_id}"
    field = "config.linux.cgroup_parent"
    if parent.endswith(".slice") and "/" not in parent.strip("/"):
        raise InvalidArgument(
            f"{field}: {parent!r} is a systemd slice, and crispd uses the cgroupfs driver: "
            "set cgroupDriver: cgroupfs in kubelet's configuration"
        )
    if ".." in parent.split("/") or not parent.strip("/"):
        raise InvalidArgument(f"{field}: {parent!r} is not the path of a cgroup")
    return "/" + parent.strip("/")


def cgroups_path(sandbox_id: str, config: SandboxConfig, container_id: str) -> str:
    """The container's cgroup."""
    return f"{cgroup_parent(sandbox_id, config)}/{container_id}"


def build_resources(config: ContainerConfig, host: HostFacts, devices: list[dict[str, Any]]) -> dict[str, Any]:
    """`linux.resources` of config.json; `devices` are the nodes that the container is given."""
    resources: dict[str, Any] = {"devices": _rules(config, devices)}
    resources.update(limits(config.resources, host))
    return resources


def limits(asked: Resources, host: HostFacts) -> dict[str, Any]:
    """The limits of a request as OCI resources; what is zero is not set."""
    found: dict[str, Any] = {}
    cpu = {
        "shares": asked.cpu_shares,
        "quota": asked.cpu_quota,
        "period": asked.cpu_period,
        "cpus": asked.cpuset_cpus,
        "mems": asked.cpuset_mems,
    }
    if any(cpu.values()):
        found["cpu"] = {name: value for name, value in cpu.items() if value}
    memory = {}
    if asked.memory_limit_in_bytes:
        memory["limit"] = asked.memory_limit_in_bytes
        # Without a limit of its own the container gets no swap, as Kubernetes expects.
        swap = asked.memory_swap_limit_in_bytes or asked.memory_limit_in_bytes
        if host.swap_limit:
            memory["swap"] = swap
    if memory:
        found["memory"] = memory
    if asked.hugepage_limits:
        found["hugepageLimits"] = [
            {"pageSize": size, "limit": limit} for size, limit in sorted(asked.hugepage_limits.items())
        ]
    if asked.unified:
        found["unified"] = dict(asked.unified)
    return found


def device_nodes(config: ContainerConfig) -> list[dict[str, Any]]:
    """`linux.devices`: the nodes asked for; all of the host's for a privileged container. Raises InvalidArgument."""
    nodes: dict[str, dict[str, Any]] = {}
    if config.security.privileged:
        for path, status in _nodes_below("/dev"):
            nodes[path] = _node(path, status, "rwm")
    for index, device in enumerate(config.devices):
        for node in _asked(device, f"config.devices[{index}]"):
            nodes[node["path"]] = node
    return list(nodes.values())


def _asked(device: Device, field: str) -> Iterator[dict[str, Any]]:
    path = os.path.realpath(device.host_path)
    try:
        status = os.stat(path)
    except OSError as error:
        raise InvalidArgument(f"{field}.host_path: {device.host_path!r}: {error.strerror}") from error
    permissions = device.permissions or "rwm"
    if set(permissions) - set("rwm"):
        raise InvalidArgument(f"{field}.permissions: {permissions!r} has other letters than r, w and m")
    if stat.S_ISDIR(status.st_mode):
        for found, found_status in _nodes_below(path):
            yield _node(device.container_path + found[len(path) :], found_status, permissions)
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        yield _node(device.container_path or path, status, permissions)
    else:
        raise InvalidArgument(f"{field}.host_path: {device.host_path!r} is no device")


def _nodes_below(top: str) -> Iterator[tuple[str, os.stat_result]]:
    for directory, subdirectories, names in os.walk(top):
        if directory == "/dev":
            # These are the container's own, whatever the host has in them.
            subdirectories[:] = [name for name in subdirectories if name not in ("pts", "shm", "mqueue", "fd")]
        for name in names:
            path = os.path.join(directory, name)
            if path in ("/dev/console", "/dev/ptmx"):
                continue
            try:
                status = os.lstat(path)
            except OSError:
                continue  # gone since it was listed
            if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                yield path, status


def _node(path: str, status: os.stat_result, permissions: str) -> dict[str, Any]:
    return {
        "path": path,
        "type": "c" if stat.S_ISCHR(status.st_mode) else "b",
        "major": os.major(status.st_rdev),
        "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "access": permissions,
    }


def _rules(config: ContainerConfig, devices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if config.security.privileged:
        return [{"allow": True, "access": "rwm"}]
    return [
        *_DEFAULT_RULES,
        *({"allow": True, **{k: node[k] for k in ("type", "major", "minor", "access")}} for node in devices),
    ]
