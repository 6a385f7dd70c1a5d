"""Project quotas: how much the files of a directory tree may take, whoever owns them.

Each file has the number of a project (ioctl_xfs_fsgetxattr(2)), which files that are made in a directory take over from
it. The file system counts the files of each project, and enforces limits of it (quotactl_fd(2), Linux 5.14). ext4 and
XFS have this where they are mounted with `prjquota`. No policy.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from dataclasses import dataclass
from enum import Enum
from typing import Final

from linux import syscalls

_FS_IOC_FSGETXATTR: Final = 0x801C581F
_FS_IOC_FSSETXATTR: Final = 0x401C5820
_ATTRIBUTES: Final = struct.Struct("=IIIII8x")  # struct fsxattr: flags, extent size, extents, project, another size
_INHERIT: Final = 0x200  # FS_XFLAG_PROJINHERIT
_PROJECTS: Final = 2  # PRJQUOTA
_GET_QUOTA, _SET_QUOTA, _GET_STATE = 0x800007, 0x800008, 0x5808  # Q_GETQUOTA, Q_SETQUOTA, Q_XGETQSTATV
_QUOTA: Final = struct.Struct("=8QI4x")  # struct if_dqblk
_LIMITS_OF_BLOCKS: Final = 1  # QIF_BLIMITS
_BLOCK: Final = 1024  # bytes, whatever the file system's
_STATE_BYTES: Final = 256  # more than struct fs_quota_statv has
_STATE_VERSION: Final = b"\1"
_COUNTED, _ENFORCED = 1 << 4, 1 << 5  # FS_QUOTA_PDQ_ACCT, FS_QUOTA_PDQ_ENFD
# Of a file system without quotas, of a kernel without them or without the call, and of one in a user namespace.
_NONE: Final = (errno.ENOSYS, errno.ENOTSUP, errno.ENOTTY, errno.EINVAL, errno.ESRCH, errno.EPERM)


class Quotas(Enum):
    """What a file system does with projects."""

    NONE = "none"
    COUNTED = "counted"
    ENFORCED = "enforced"


@dataclass(frozen=True, slots=True)
class Use:
    """What the files of a project take, in bytes and inodes, and their limit in bytes; 0 for none."""

    bytes: int
    inodes: int
    limit: int


def quotas_of(directory: int) -> Quotas:
    """Return what the file system of an open directory does with projects. Raises OSError."""
    state = bytearray(_STATE_VERSION.ljust(_STATE_BYTES, b"\0"))
    try:
        syscalls.quotactl_fd(directory, _GET_STATE << 8 | _PROJECTS, 0, state)
    except OSError as error:
        if error.errno in _NONE:
            return Quotas.NONE
        raise
    (flags,) = struct.unpack_from("=H", state, 2)
    if flags & _ENFORCED:
        return Quotas.ENFORCED
    return Quotas.COUNTED if flags & _COUNTED else Quotas.NONE


def project_of(directory: int) -> int:
    """Return the project of an open directory, 0 if it has none. Raises OSError."""
    try:
        return int(_attributes(directory)[3])
    except OSError as error:
        if error.errno in _NONE:
            return 0
        raise


def assign(directory: int, project: int) -> None:
    """Make an open directory, and what is made in it from now on, part of a project. Raises OSError."""
    flags, size, _extents, _project, other = _attributes(directory)
    wanted = _ATTRIBUTES.pack(flags | _INHERIT, size, 0, project, other)
    fcntl.ioctl(directory, _FS_IOC_FSSETXATTR, wanted)


def release(directory: int) -> None:
    """Have an open directory take files of any project. Those in it keep theirs. Raises OSError."""
    flags, size, _extents, project, other = _attributes(directory)
    fcntl.ioctl(directory, _FS_IOC_FSSETXATTR, _ATTRIBUTES.pack(flags & ~_INHERIT, size, 0, project, other))


def use_of(directory: int, project: int) -> Use:
    """Return what a project takes of the file system of an open directory. Raises OSError."""
    quota = bytearray(_QUOTA.size)
    try:
        syscalls.quotactl_fd(directory, _GET_QUOTA << 8 | _PROJECTS, project, quota)
    except OSError as error:
        if error.errno == errno.ENOENT:  # XFS, for a project without files and limits
            return Use(0, 0, 0)
        raise
    blocks, _soft, space, _inode_limit, _inode_soft, inodes, *_rest = _QUOTA.unpack(quota)
    return Use(space, inodes, blocks * _BLOCK)


def limit(directory: int, project: int, size: int) -> None:
    """Limit what a project takes to so many bytes, rounded up to 1024; 0 for any. Raises OSError."""
    blocks = -(-size // _BLOCK)
    quota = bytearray(_QUOTA.pack(blocks, 0, 0, 0, 0, 0, 0, 0, _LIMITS_OF_BLOCKS))
    syscalls.quotactl_fd(directory, _SET_QUOTA << 8 | _PROJECTS, project, quota)


def _attributes(directory: int) -> tuple[int, ...]:
    return _ATTRIBUTES.unpack(fcntl.ioctl(directory, _FS_IOC_FSGETXATTR, bytes(_ATTRIBUTES.size)))
