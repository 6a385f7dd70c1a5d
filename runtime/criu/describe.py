"""What of a running container is the host's, in the words of criu(8): common to all who dump it or restore it.

The names are those that runc gives, so that it can restore what was dumped here, and the other way round.
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

DESCRIPTORS: Final = "descriptors.json"  # what a container's standard streams were, to be given new ones by name
SHARED: Final = (("network", "net", "extRootNetNS"), ("pid", "pid", "extRootPidNS"))  # kind, criu's, its name in images


def describe(pid: int, spec: Spec, cgroup: Cgroup | None, images: str) -> list[str]:
    """What is not to be in the images of that process's container: mounts, files, namespaces (criu(8) "--external").

    Writes what its standard streams were into the directory `images`, for a restore. Raises OperationFailed.
    """
    streams = _standard_streams(pid)
    path = os.path.join(images, DESCRIPTORS)
    with failing("write", path), open(path, "w") as file:
        file.write(json.dumps(streams))
    return _external_objects(pid, spec, cgroup, streams)


def _standard_streams(pid: int) -> list[str]:
    """What they are, as criu has to be told of them where they are the host's."""
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
    """Where in the container it is, links followed."""
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
    """(destination, source) of mounts that criu is not to make: the host's, and directories of cgroup v1's hierarchies.

    Those are parts of file systems whose roots the container does not have, and are others where it is restored.
    """
    found = host_binds(spec)
    directories = cgroup_view(cgroup).directories if cgroup is not None else ()
    for mount in spec.mounts:
        if mount.type in ("cgroup", "cgroup2") and not is_bind(mount.type, mount.options):
            found += [(f"{absolute(mount.destination)}/{name}", path) for name, path in directories if name]
    return found


def host_binds(spec: Spec) -> list[tuple[str, str]]:
    """(destination, source) of mounts whose content is the host's."""
    return [(absolute(mount.destination), mount.source) for mount in spec.mounts if is_bind(mount.type, mount.options)]
