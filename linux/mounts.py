"""Mounts and unmounts at a single path: a tmpfs, a pinned namespace. All functions raise OSError."""

from __future__ import annotations

import contextlib
import errno
import os

from linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

_INERT: Final = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC


def mount_tmpfs(path: str, options: Mapping[str, str]) -> None:
    """Make the directory and mount a tmpfs on it, with nosuid, nodev and noexec."""
    os.mkdir(path, 0o700)
    context = syscalls.fsopen("tmpfs")
    try:
        for key, value in options.items():
            syscalls.fsconfig_string(context, key, value)
        syscalls.fsconfig_create(context)
        mount = syscalls.fsmount(context, _INERT)
    finally:
        os.close(context)
    try:
        syscalls.move_mount(mount, syscalls.AT_FDCWD, path)
    finally:
        os.close(mount)


def unmount_if_mounted(path: str) -> None:
    """Detach the mount on `path`. It is no error if there is no mount or no such path."""
    try:
        syscalls.umount2(path, syscalls.MNT_DETACH)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise


def pin_namespace(source: str, path: str) -> None:
    """Keep the namespace of /proc file `source` alive as a bind mount on `path`."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o444))
    try:
        syscalls.mount(source, path, None, syscalls.MS_BIND)
    except OSError:
        os.unlink(path)
        raise


def unpin_namespace(path: str) -> None:
    """Undo `pin_namespace`, also when only part of it is left."""
    unmount_if_mounted(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
