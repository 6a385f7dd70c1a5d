"""overlayfs' metadata in lower layers: whiteouts, opaque directories, and attributes of merged directories."""

from __future__ import annotations

import errno
import os
import stat

from linux.tables import OVERLAY_ATTRIBUTES, OVERLAY_OPAQUE, SELINUX_LABEL, USERS_OVERLAY_ATTRIBUTES

OPAQUE_XATTR = OVERLAY_OPAQUE.encode()
# Attributes that an archive does not decide: they say what this machine does with a file.
RESERVED_XATTRS = (OVERLAY_ATTRIBUTES.encode(), USERS_OVERLAY_ATTRIBUTES.encode(), SELINUX_LABEL.encode())
PLAIN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def is_whiteout(there: os.stat_result) -> bool:
    return stat.S_ISCHR(there.st_mode) and there.st_rdev == 0


def make_whiteout(parent: int, name: bytes) -> None:
    os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent)


def mark_opaque(directory: int) -> None:
    """Hide the lower layers' entries of this directory."""
    os.setxattr(directory, OPAQUE_XATTR, b"y")


def is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, OPAQUE_XATTR) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise
