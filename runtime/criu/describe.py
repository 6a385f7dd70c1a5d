"""Describes to criu(8) which objects of a container belong to the host. For both dump and restore.

The names are runc's, so that each can restore what the other has dumped.
"""

from __future__ import annotations

import os
import stat

from linux.syscalls import open_in_root
from runtime.errors import failing
from runtime.light import json
from runtime.process.init import cgroup_view
from runtime.rootfs.plan import absolute
from runtime.spec.values import Spec, is_bind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from runtime.cgroups import Cgroup

DESCRIPTORS: Final = "descriptors.json"  # names of the container's standard streams, to replace them at a restore
SHARED: Final = (("network", "net", "extRootNetNS"), ("pid", "pid", "extRootPidNS"))  # kind, criu name, name in images


def describe(pid: int, spec: Spec, cgroup: Cgroup | None, images: str) -> list[str]:
    """Return the mounts, files and namespaces that the images must not contain (criu(8) "--external").

    Writes the names of the standard streams to the directory `images`, for a restore. Raises OperationFailed.
    """
    streams = _standard_streams(pid)
    path = os.path.join(images, DESCRIPTORS)
    with failing("write", path), open(path, "w") as file:
        file.write(json.dumps(streams))
    return _external_objects(pid, spec, cgroup, streams)


def _standard_streams(pid: int) -> list[str]:
    """Return criu's names of the standard streams."""
    with failing("read mounts of", f"process {pid}"), open(f"/proc/{pid}/mountinfo") as file:
        mounts = {int(line.split()[0]) for line in file}
    return [_stream(pid, fd, mounts) for fd in range(3)]


def _stream(pid: int, fd: int, mounts: set[int]) -> str:
    try:
        link = os.readlink(f"/proc/{pid}/fd/{fd}")
        status = os.stat(f"/proc/{pid}/fd/{fd}")
        with open(f"/proc/{pid}/fdinfo/{fd}") as file:
            mount = next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))
    except OSError:  # the container has closed it
        return "/dev/null"
    if stat.S_ISREG(status.st_mode) and mount not in mounts:
        return f"file[{mount:x}:{status.st_ino:x}]"
    return link


def _external_objects(pid: int, spec: Spec, cgroup: Cgroup | None, streams: list[str]) -> list[str]:
    mounts = external_mounts(spec, cgroup)
    found = [f"mnt[{_mount_point(pid, destination)}]:{destination}" for destination, _source in mounts]
    found += [stream for stream in streams if stream.startswith("file[")]
    for kind, theirs, name in SHARED:
        namespace = spec.linux.namespace(kind)
        if namespace is not None and namespace.path:
            with failing("read namespace of", f"process {pid}"):
                found.append(f"{theirs}[{os.stat(f'/proc/{pid}/ns/{theirs}').st_ino}]:{name}")
    return found


def _mount_point(pid: int, destination: str) -> str:
    """Return the destination's path in the container with links resolved."""
    with failing("find", destination):
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = open_in_root(root, destination, os.O_PATH | os.O_CLOEXEC)
        finally:
            os.close(root)
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)


def external_mounts(spec: Spec, cgroup: Cgroup | None) -> list[tuple[str, str]]:
    """Return (destination, source) of mounts that criu must not make: bind mounts, and cgroup v1 directories.

    The latter are parts of file systems whose root the container does not have, and differ where it is restored.
    """
    found = host_binds(spec)
    directories = cgroup_view(cgroup).directories if cgroup is not None else ()
    for mount in spec.mounts:
        if mount.type in ("cgroup", "cgroup2") and not is_bind(mount.type, mount.options):
            found += [(f"{absolute(mount.destination)}/{name}", path) for name, path in directories if name]
    return found


def host_binds(spec: Spec) -> list[tuple[str, str]]:
    """Return (destination, source) of bind mounts, whose content belongs to the host."""
    return [(absolute(mount.destination), mount.source) for mount in spec.mounts if is_bind(mount.type, mount.options)]
