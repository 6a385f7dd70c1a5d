"""Plans a container's mounts (runtime-spec "Mounts"; CRI `Mount`)."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from image.model import VOLUMES_LIMIT, ImageConfig
from pods import pod_files, rules
from pods.errors import InvalidArgument
from pods.model import CgroupMountMode, ContainerConfig, ContainerSecurity, Mount, NamespaceMode, Propagation, Sandbox
from pods.oci import mounted_images
from pods.security.user_namespaces import oci_lines

_PROPAGATION = {
    Propagation.PRIVATE: "rprivate",
    Propagation.HOST_TO_CONTAINER: "rslave",
    Propagation.BIDIRECTIONAL: "rshared",
}
_PTS_OPTIONS = ("newinstance", "ptmxmode=0666", "mode=0620", "gid=5")


def plan_mounts(
    config: ContainerConfig,
    sandbox: Sandbox,
    *,
    sources: Sequence[str],
    sandbox_dir: Path,
    files_dir: Path,
    volumes_dir: Path,
    image_volumes: Mapping[str, str],
    more: Sequence[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Return all mounts, parents before their children.

    A requested mount replaces a default mount or an image's volume at the same path; one at /dev also replaces the
    defaults below it. `sources` are the real host paths of `config.mounts`, in order. `image_volumes` maps the paths of
    the image's volumes to directories in `volumes_dir`. `more` are the devices' mounts; at the same path a device's
    mount is on top of a requested one.
    """
    requested = [
        _requested(mount, mounted_images.source(volumes_dir, index) if mount.image is not None else source)
        for index, (mount, source) in enumerate(zip(config.mounts, sources, strict=True))
    ]
    taken = {mount["destination"] for mount in requested}
    volumes = [
        _bind(volume, str(volumes_dir / directory), "rprivate")
        for volume, directory in image_volumes.items()
    ]
    defaults = [*_kernel_mounts(config.security), *_pod_mounts(config, sandbox, sandbox_dir, files_dir)]
    kept = [mount for mount in defaults if not _is_replaced(mount["destination"], taken)]
    return sorted([*kept, *volumes, *requested, *more], key=depth)


def image_volumes(config: ContainerConfig, image: ImageConfig) -> dict[str, str]:
    """Return the image's volumes that the request does not cover: path in the container -> directory name.

    A volume at or below a requested mount is left out, since it would hide that mount's content. Raises InvalidArgument
    for an image with too many volumes: it may be older than the check at pulls.
    """
    if len(image.volumes) > VOLUMES_LIMIT:
        reason = f"it has {len(image.volumes)} volumes, more than {VOLUMES_LIMIT}"
        raise InvalidArgument(f"config.image: {config.image.image!r}: {reason}")
    taken = {normalized(mount.container_path) for mount in config.mounts}
    volumes = sorted({normalized(volume) for volume in image.volumes})
    free = (volume for volume in volumes if _may_be_volume(volume) and not _is_within(volume, taken))
    return {volume: str(number) for number, volume in enumerate(free)}


def _is_within(path: str, mounted: set[str]) -> bool:
    while path != "/" and len(path) <= rules.PATH_BYTES:  # no mount point is longer
        if path in mounted:
            return True
        path = posixpath.dirname(path)
    return False


def normalized(path: str) -> str:
    """Return the path as absolute, without '.', '..' and doubled slashes."""
    return posixpath.normpath("/" + path.lstrip("/"))


def _may_be_volume(path: str) -> bool:
    # An image must not cover the kernel's file systems: masks and security labels are set through them
    # (CVE-2019-16884).
    top = path.split("/")[1]
    return top not in ("", "proc", "sys", "dev") and path not in {f"/etc/{name}" for name in pod_files.NAMES}


def _kernel_mounts(security: ContainerSecurity) -> list[dict[str, Any]]:
    access = "rw" if security.privileged else "ro"
    cgroup_access = "rw" if security.cgroup_mount_mode is CgroupMountMode.READ_WRITE else access
    return [
        _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", *_PTS_OPTIONS),
        _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", access),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", cgroup_access),
    ]


def _pod_mounts(
    config: ContainerConfig, sandbox: Sandbox, sandbox_dir: Path, files_dir: Path
) -> list[dict[str, Any]]:
    host_ipc = sandbox.config.security.namespaces.ipc is NamespaceMode.NODE
    access = ("ro",) if config.security.readonly_rootfs else ()
    files = [_bind(f"/etc/{name}", f"{files_dir}/{name}", "rprivate", *access) for name in pod_files.NAMES]
    shm = _bind("/dev/shm", "/dev/shm" if host_ipc else f"{sandbox_dir}/shm", "rprivate")
    return [shm, *files]


def _requested(mount: Mount, source: str) -> dict[str, Any]:
    # Never "rw": it would lift a read-only flag of the host mount under the path.
    access = ("rro",) if mount.recursive_read_only else ("ro",) if mount.readonly else ()
    options = (_PROPAGATION[mount.propagation], *access, *mount.mount_options)
    entry = _bind(normalized(mount.container_path), source, *options)
    # A mounted image already has the owners of the pod's user namespace.
    if mount.image is None and (mount.uid_mappings or mount.gid_mappings):
        entry |= {"uidMappings": oci_lines(mount.uid_mappings), "gidMappings": oci_lines(mount.gid_mappings)}
    return entry


def _bind(destination: str, source: str, *options: str) -> dict[str, Any]:
    return _mount(destination, "bind", source, "rbind", *options)


def _mount(destination: str, type: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": type, "source": source, "options": list(options)}


def _is_replaced(destination: str, taken: set[str]) -> bool:
    return destination in taken or ("/dev" in taken and destination.startswith("/dev/"))


def depth(mount: Mapping[str, Any]) -> int:
    """Return the number of path components, a sort key that puts parents before children."""
    return len([part for part in mount["destination"].split("/") if part])
