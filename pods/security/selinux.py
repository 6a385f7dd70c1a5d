"""SELinux labels of containers (CRI `SELinuxOption`), and relabelling of volumes to those (`Mount.selinux_relabel`)."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pods import pod_files
from pods.errors import InvalidArgument
from pods.host import HostFacts
from pods.model import ContainerSecurity

_ATTRIBUTE: Final = "security.selinux"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEPEST: Final = 512  # two descriptors for each level
# Of the host's own programs, which would lose what they may use: whoever mounts one of these must not relabel it.
_SYSTEM: Final = frozenset(
    (
        "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc", "/root",
        "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/local",
        "/usr/sbin", "/usr/share", "/var", "/var/lib", "/var/log", "/var/run", "/var/tmp",
    )
)  # fmt: skip


def check(path: str, field: str) -> None:
    """Refuse (InvalidArgument) a directory of the system."""
    if os.path.normpath(path) in _SYSTEM:
        raise InvalidArgument(f"{field}: {path!r} is the system's own: it is not relabelled")


@dataclass(frozen=True, slots=True)
class SELinuxLabels:
    """What SELinux knows a container's process by, and what is the container's alone; "" for none."""

    process: str = ""
    files: str = ""


def selinux_labels(security: ContainerSecurity, host: HostFacts) -> SELinuxLabels:
    """The labels that a container gets; none without SELinux, options, or confinement."""
    options = security.selinux
    if options is None or not host.selinux or security.privileged:
        return SELinuxLabels()
    user, role = options.user or "system_u", options.role or "system_r"
    level = options.level or "s0"
    return SELinuxLabels(
        process=f"{user}:{role}:{options.type or 'container_t'}:{level}",
        files=f"{user}:object_r:container_file_t:{level}",
    )


def relabel(path: str, label: str, field: str) -> None:
    """Give a host path, a real one, and all below it that label; links are labelled, not followed.

    File systems that have no labels of files are left as they are. Raises InvalidArgument naming `field` for a
    directory of the system, one that is too deep, and for what cannot be labelled.
    """
    check(path, field)
    levels: list[tuple[int, Any]] = []  # and an iterator: a volume may have too many names to list
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
    """What a pod's containers have of crisp's own: /etc/resolv.conf, /etc/hostname, /etc/hosts, /dev/shm."""
    files = pod_files.place(directory)
    for path in (*(files / name for name in pod_files.NAMES), directory / "shm"):
        if path.exists():
            relabel(str(path), label, "config.linux.security_context.selinux_options")


def _relabel_entry(directory: int, name: str, label: str) -> int:
    """Label one; its descriptor if it is a directory, else -1. By descriptors: who has the volume may rename in it."""
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
        os.setxattr(path, _ATTRIBUTE, label.encode(), follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
