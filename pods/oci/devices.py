"""Finds the host's device nodes for containers. Reads `/dev`; changes nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pods.errors import InvalidArgument
from pods.model import Device

# Directories in /dev that hold no devices, or another container's.
_NOT_DEVICES = frozenset({"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"})
_MAX_NODES = 4096


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device node to make in a container, and the access to allow ("rwm")."""

    path: str
    type: str  # "c" or "b"; from CDI also "p"
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    access: str

    def node(self) -> dict[str, Any]:
        """Return the entry of `linux.devices`."""
        return {
            "path": self.path,
            "type": self.type,
            "major": self.major,
            "minor": self.minor,
            "fileMode": self.mode,
            "uid": self.uid,
            "gid": self.gid,
        }

    @property
    def has_rule(self) -> bool:
        """Whether the cgroup needs a rule for it: device cgroups do not cover FIFOs."""
        return self.type != "p"

    def rule(self) -> dict[str, Any]:
        """Return the entry of `linux.resources.devices` that allows it."""
        return {"allow": True, "type": self.type, "major": self.major, "minor": self.minor, "access": self.access}


def host_devices(directory: str = "/dev") -> tuple[DeviceNode, ...]:
    """Return all device nodes below the host's `/dev`, for privileged containers. /dev/console is left out."""
    return tuple(node for node in _nodes(directory, directory, "rwm", 0) if node.path != "/dev/console")


def requested_devices(devices: tuple[Device, ...]) -> tuple[DeviceNode, ...]:
    """Return the nodes that `config.devices` requests. A host directory means all devices below it.

    Raises InvalidArgument for a path that is missing or is not a device.
    """
    found = [_requested(device, f"config.devices[{index}]") for index, device in enumerate(devices)]
    return tuple(chain.from_iterable(found))


def _requested(device: Device, field: str) -> tuple[DeviceNode, ...]:
    try:
        status = os.stat(device.host_path)  # follows links such as /dev/disk/by-id/...
    except OSError as error:
        raise InvalidArgument(f"{field}.host_path: {device.host_path!r}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        node = _node(device.container_path, status, device.permissions)
        if node is None:
            raise InvalidArgument(f"{field}.host_path: {device.host_path!r} is not a device")
        return (node,)
    nodes = tuple(_nodes(device.host_path, device.container_path, device.permissions, 0))
    if not nodes:
        raise InvalidArgument(f"{field}.host_path: there is no device below {device.host_path!r}")
    if len(nodes) > _MAX_NODES:
        raise InvalidArgument(f"{field}.host_path: more than {_MAX_NODES} devices below {device.host_path!r}")
    return nodes


def _nodes(directory: str, container_directory: str, access: str, depth: int) -> Iterator[DeviceNode]:
    with os.scandir(directory) as listing:
        entries = sorted(listing, key=lambda entry: entry.name)
    for entry in entries:
        path = os.path.join(container_directory, entry.name)
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in _NOT_DEVICES and depth < 8:
                yield from _nodes(entry.path, path, access, depth + 1)
            continue
        try:
            node = _node(path, entry.stat(follow_symlinks=False), access)
        except FileNotFoundError:
            continue  # unplugged since the directory was read
        if node is not None:
            yield node


def _node(path: str, status: os.stat_result, access: str) -> DeviceNode | None:
    kind = "c" if stat.S_ISCHR(status.st_mode) else "b" if stat.S_ISBLK(status.st_mode) else ""
    # Device 0:0 is overlayfs's mark of a deleted file.
    if not kind or status.st_rdev == 0:
        return None
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    return DeviceNode(
        os.path.normpath(path), kind, major, minor, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, access
    )
