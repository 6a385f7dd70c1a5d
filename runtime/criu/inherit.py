"""Prepares what criu(8) needs from outside to restore a container. For all callers that restore."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from runtime.criu import worker as criu
from runtime.criu.describe import DESCRIPTORS, SHARED, host_binds
from runtime.errors import failing
from runtime.light import json
from runtime.rootfs.tree import Rootfs
from runtime.spec.values import Spec, is_bind


def inherited_objects(
    spec: Spec, images: str, streams: Sequence[int], opened: contextlib.ExitStack
) -> tuple[list[int], list[bytes]]:
    """Open replacements for the container's standard streams, and existing namespaces.

    Returns the descriptors that criu must inherit, closed with `opened`, and the values of its "inherit_fd".
    """
    path = os.path.join(images, DESCRIPTORS)
    with failing("read", path), open(path, "rb") as file:
        names = json.loads(file.read())
    if not isinstance(names, list):
        names = []
    fds, inherited = [], []
    for fd, name in zip(streams, names, strict=False):
        if isinstance(name, str) and ("pipe:" in name or name.startswith("file[")):
            fds.append(os.dup(fd))
            inherited.append(criu.inherited(name, fds[-1]))
    for kind, _theirs, name in SHARED:
        namespace = spec.linux.namespace(kind)
        if namespace is not None and namespace.path:
            with failing("open", namespace.path):
                fds.append(os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC))
            inherited.append(criu.inherited(name, fds[-1]))
    for fd in fds:
        opened.callback(os.close, fd)
    return fds, inherited


def make_mount_points(root: str, spec: Spec) -> None:
    """Make the mount points in the rootfs, since criu does not. Those inside other file systems are in the images."""
    others = [mount.destination for mount in spec.mounts if not is_bind(mount.type, mount.options)]
    with failing("open rootfs", root):
        rootfs = Rootfs(os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        sources = dict(host_binds(spec))
        for mount in spec.mounts:
            if any(mount.destination.startswith(other.rstrip("/") + "/") for other in others):
                continue
            source = sources.get(mount.destination)
            is_directory = source is None or os.path.isdir(source)
            with failing("make mount point", mount.destination):
                os.close(rootfs.open_target(mount.destination, is_directory=is_directory))
    finally:
        os.close(rootfs.root)
