"""A mount namespace with nothing in it."""

from __future__ import annotations

import os

from linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def enter(directories: Iterable[str] = (), *, inodes: int) -> None:
    """Move the calling thread to a new mount namespace that contains one tmpfs and nothing else. Raises OSError.

    The tmpfs has room for `inodes`, its root included, and has `directories`, which are absolute paths.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    context = syscalls.fsopen("tmpfs")
    for key, value in (("size", "16384"), ("nr_inodes", str(inodes)), ("mode", "0555"), ("source", "crisp")):
        syscalls.fsconfig_string(context, key, value)
    syscalls.fsconfig_create(context)
    attrs = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
    root = syscalls.fsmount(context, attrs)
    os.close(context)
    for directory in directories:
        os.mkdir(directory.lstrip("/"), 0o555, dir_fd=root)
    syscalls.move_mount(root, syscalls.AT_FDCWD, "/tmp")
    os.fchdir(root)
    os.close(root)
    syscalls.pivot_root(".", ".")
    syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")
