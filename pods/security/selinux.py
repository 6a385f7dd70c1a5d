"""SELinux labels of containers (CRI `SELinuxOption`), and relabelling of volumes (`Mount.selinux_relabel`)."""

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


def selinux_labels(security: ContainerSecurity, host: HostFacts) -> SELinuxLabels:
    """Return the container's labels; none without SELinux, without options, or if privileged."""
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
        os.setxattr(path, _ATTRIBUTE, label.encode(), follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
