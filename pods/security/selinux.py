"""SELinux labels of containers (CRI `SELinuxOption`), and relabelling of volumes (`Mount.selinux_relabel`).

On a machine with SELinux every pod has a level of its own, with two categories that no other pod has. Its containers
have this level unless pod or container ask for another, and so have their files and the volumes that are relabelled.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from linux.selinux import ContainerContexts
from linux.tables import SELINUX_LABEL
from pods import pod_files
from pods.errors import InvalidArgument
from pods.host import HostFacts
from pods.model import ContainerSecurity, NamespaceMode, Sandbox, SandboxConfig, SELinuxOptions

# Where the policy has nothing for containers, but a pod asks for a label.
_CONTEXTS: Final = ContainerContexts("system_u:system_r:container_t:s0", "system_u:object_r:container_file_t:s0")
_CATEGORIES: Final = 1024  # of every policy with categories
_NOTHING: Final = SELinuxOptions()
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEPEST: Final = 512  # two descriptors for each level
# Directories of the host's own programs, which would lose access to them after a relabelling.
_SYSTEM: Final = frozenset(
    (
        "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc", "/root",
        "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/local",
        "/usr/sbin", "/usr/share", "/var", "/var/lib", "/var/log", "/var/run", "/var/tmp",
    )
)  # fmt: skip


def check(path: str, field: str) -> None:
    """Refuse (InvalidArgument) to relabel a directory of the system."""
    if os.path.normpath(path) in _SYSTEM:
        raise InvalidArgument(f"{field}: {path!r} is a directory of the system and not relabelled: use one below it")


@dataclass(frozen=True, slots=True)
class SELinuxLabels:
    """The labels of a container's process and of its own files; "" for none."""

    process: str = ""
    files: str = ""


def level_of(config: SandboxConfig, host: HostFacts, taken: Collection[str]) -> str:
    """Return a level for a new pod that is not in `taken`; "" if it is to have none.

    A pod that shares the node's processes or IPC is not separated by categories: it is there for other pods' sake.
    """
    namespaces, own = config.security.namespaces, config.security.selinux
    if host.container_contexts is None or NamespaceMode.NODE in (namespaces.pid, namespaces.ipc):
        return ""
    if own is not None and own.level:
        return ""
    while (level := _random_level()) in taken:
        pass
    return level


def _random_level() -> str:
    low, high = sorted(random.sample(range(_CATEGORIES), 2))
    return f"s0:c{low},c{high}"


def selinux_labels(security: ContainerSecurity, sandbox: Sandbox, host: HostFacts) -> SELinuxLabels:
    """Return the container's labels: by its own options, else by its pod's, else by the policy and the pod's level.

    There are none without SELinux, and if neither it nor its pod has options or a level. A privileged container's
    processes are not labelled, so that the policy decides, which sees files of a container.
    """
    options = [one for one in (security.selinux, sandbox.config.security.selinux) if one not in (None, _NOTHING)]
    if not host.selinux or not (options or sandbox.selinux_level):
        return SELinuxLabels()
    contexts = host.container_contexts or _CONTEXTS
    user, role, kind, level = contexts.process.split(":", 3)
    level = sandbox.selinux_level or level
    for one in reversed(options):
        user, role, kind, level = one.user or user, one.role or role, one.type or kind, one.level or level
    return SELinuxLabels(
        process="" if security.privileged else f"{user}:{role}:{kind}:{level}",
        files=f"{user}:object_r:{contexts.files.split(':')[2]}:{level}",
    )


def relabel(path: str, label: str, field: str) -> None:
    """Label a real host path and everything below it. Links are labelled, not followed.

    File systems without labels are left alone. Raises InvalidArgument naming `field` for a directory of the system, a
    tree that is too deep, and a file that cannot be labelled.
    """
    check(path, field)
    levels: list[tuple[int, Any]] = []  # with an iterator of names: they may not fit in memory
    try:
        _set(path, label)
        if (top := _open(path, None)) >= 0:
            levels.append((top, os.scandir(top)))
        while levels:
            directory, names = levels[-1]
            entry = next(names, None)
            if entry is None:
                levels.pop()
                os.close(directory)
            elif (inner := _relabel_entry(directory, entry.name, label)) >= 0:
                levels.append((inner, os.scandir(inner)))
                if len(levels) > _DEEPEST:
                    raise InvalidArgument(f"{field}: {path!r} is deeper than {_DEEPEST} directories")
    except OSError as error:
        raise InvalidArgument(f"{field}: label {path!r} {label!r}: {error.strerror}") from error
    finally:
        for directory, names in levels:
            names.close()
            os.close(directory)


def relabel_pod_files(directory: Path, label: str) -> None:
    """Label crisp's own files in the pod's containers: /etc/resolv.conf, /etc/hostname, /etc/hosts, /dev/shm."""
    files = pod_files.place(directory)
    for path in (*(files / name for name in pod_files.NAMES), directory / "shm"):
        if path.exists():
            relabel(str(path), label, "config.linux.security_context.selinux_options")


def _relabel_entry(directory: int, name: str, label: str) -> int:
    """Label an entry by descriptor: the volume's users may rename it. Returns a directory's descriptor, else -1."""
    try:
        _set(f"/proc/self/fd/{directory}/{name}", label)
        return _open(name, directory)
    except FileNotFoundError:  # removed meanwhile
        return -1


def _open(name: str, directory: int | None) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            return -1
        raise


def _set(path: str, label: str) -> None:
    try:
        os.setxattr(path, SELINUX_LABEL, label.encode(), follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
