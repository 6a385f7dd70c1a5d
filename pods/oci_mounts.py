"""The `mounts` of a container: the defaults that images expect, the pod's shared files, the request's volumes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pods.errors import InvalidArgument, Unimplemented
from pods.model import ContainerConfig, Mount, NamespaceMode, Propagation

_PROPAGATION: Final = {
    Propagation.PRIVATE: "rprivate",
    Propagation.HOST_TO_CONTAINER: "rslave",
    Propagation.BIDIRECTIONAL: "rshared",
}
_POD_FILES: Final = (("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname"), ("hosts", "/etc/hosts"))


def build_mounts(
    config: ContainerConfig, sandbox_dir: Path, volumes: Sequence[tuple[str, Path]], ipc: NamespaceMode
) -> list[dict[str, Any]]:
    """`mounts` of config.json, each after those it lies in. `volumes` are the image's: (path, host directory)."""
    mounts = {mount["destination"]: mount for mount in _defaults(config, sandbox_dir, ipc)}
    for name, destination in _POD_FILES:
        options = ["rbind", "rprivate", "ro" if config.security.readonly_rootfs else "rw"]
        mounts[destination] = _bind(str(sandbox_dir / name), destination, options)
    for destination, directory in volumes:
        mounts[destination] = _bind(str(directory), destination, ["rbind", "rprivate", "rw"])
    for index, mount in enumerate(config.mounts):
        destination = os.path.normpath(mount.container_path)
        # A volume at or above a default mount's place takes the place over, as kubelet's /etc/hosts does.
        mounts.pop(destination, None)
        mounts[destination] = _volume(mount, destination, f"config.mounts[{index}]")
    return sorted(mounts.values(), key=lambda mount: mount["destination"].rstrip("/").count("/"))


def _defaults(config: ContainerConfig, sandbox_dir: Path, ipc: NamespaceMode) -> list[dict[str, Any]]:
    access = "rw" if config.security.privileged else "ro"
    shm = "/dev/shm" if ipc is NamespaceMode.NODE else str(sandbox_dir / "shm")
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    mounts = [
        _new("proc", "/proc", ["nosuid", "noexec", "nodev"]),
        _new("tmpfs", "/dev", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _new("devpts", "/dev/pts", pts),
        _new("mqueue", "/dev/mqueue", ["nosuid", "noexec", "nodev"]),
        _new("sysfs", "/sys", ["nosuid", "noexec", "nodev", access]),
        _new("cgroup", "/sys/fs/cgroup", ["nosuid", "noexec", "nodev", "relatime", access]),
    ]
    if ipc is NamespaceMode.CONTAINER:
        mounts.append(_new("tmpfs", "/dev/shm", ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]))
    else:
        mounts.append(_bind(shm, "/dev/shm", ["rbind", "rprivate", "nosuid", "noexec", "nodev"]))
    return mounts


def _volume(mount: Mount, destination: str, field: str) -> dict[str, Any]:
    if mount.image is not None:
        raise Unimplemented(f"{field}.image: image volumes are not supported yet")
    if mount.uid_mappings or mount.gid_mappings:
        raise Unimplemented(f"{field}.uidMappings: id-mapped volumes are not supported yet")
    source = os.path.realpath(mount.host_path)
    if mount.propagation is Propagation.BIDIRECTIONAL and not _is_shared(source):
        raise InvalidArgument(f"{field}.propagation: {mount.host_path!r} is not on a shared mount of the host")
    if mount.recursive_read_only:
        if not mount.readonly or mount.propagation is not Propagation.PRIVATE:
            raise InvalidArgument(f"{field}.recursive_read_only: needs readonly and private propagation")
        access = "rro"
    else:
        access = "ro" if mount.readonly else "rw"
    return _bind(source, destination, ["rbind", _PROPAGATION[mount.propagation], access])


def _is_shared(path: str) -> bool:
    """Whether the mount that holds `path` propagates (proc_pid_mountinfo(5), optional field `shared`)."""
    best, shared = "", False
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields = line.split(" ")
            point = fields[4]
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, shared = point, "shared:" in line.split(" - ")[0]
    return shared


def _new(kind: str, destination: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": kind, "options": options}


def _bind(source: str, destination: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": source, "options": options}
