"""Extended attributes of a layer's files: which are dropped, and what the kernel makes of one that root sets."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Mapping

from image.unpack import acl

CAPABILITY = b"security.capability"

_NAME_LIMIT = 255  # bytes; XATTR_NAME_MAX
_VALUE_LIMIT = 1 << 16  # bytes; XATTR_SIZE_MAX
_PREFIXES = (b"user.", b"trusted.", b"security.")
_ACLS = (acl.ACCESS, acl.DEFAULT)
# linux/capability.h: struct vfs_cap_data and vfs_ns_cap_data, whose last field is the root of a user namespace.
_REVISION_2, _REVISION_3, _EFFECTIVE = 0x0200_0000, 0x0300_0000, 1
_SIZES = {20: _REVISION_2, 24: _REVISION_3}


def set_all(set_one: Callable[[bytes, bytes], object], xattrs: Mapping[bytes, bytes]) -> None:
    """Set extended attributes by `set_one`, which raises what setxattr(2) does. Raises OSError, ValueError.

    Attributes that the file system or the kind of file cannot have are dropped, as by every runtime (macOS leaves
    com.apple.* in archives); except `security.` ones, which programs rely on.
    """
    for key, value in xattrs.items():
        if b"\0" in key:
            raise ValueError("a NUL in the name of an attribute")
        try:
            set_one(key, value)
        except OSError as error:
            foreign = error.errno == errno.EOPNOTSUPP and not key.startswith(b"security.")
            if not foreign and not (error.errno == errno.EPERM and key.startswith(b"user.")):
                shown = repr(key[:200].decode(errors="backslashreplace"))
                # EACCES, too, is the archive's fault: a default access control list of what is no directory.
                number = errno.EINVAL if error.errno == errno.EACCES else error.errno
                raise OSError(number, f"set {shown}: {error.strerror}") from None


def as_root(mode: int, key: bytes, value: bytes) -> tuple[int, bytes | None]:
    """Return a file's mode, and the value that it has under `key`, after root's setxattr(2) on a file of this mode.

    The value is None if there is none then. Raises OSError as the call does on file systems for layers.
    """
    if not 0 < len(key) <= _NAME_LIMIT:
        raise _error(errno.ERANGE)
    if len(value) > _VALUE_LIMIT:
        raise _error(errno.E2BIG)
    if key in _ACLS:
        return _with_acl(mode, key, value)
    if key == CAPABILITY:
        return mode, _capability(value)
    if key.startswith(b"user.") and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise _error(errno.EPERM)
    if not key.startswith(_PREFIXES):
        raise _error(errno.EOPNOTSUPP)
    if key in _PREFIXES:
        raise _error(errno.EINVAL)
    return mode, value


def _with_acl(mode: int, key: bytes, value: bytes) -> tuple[int, bytes | None]:
    entries = acl.parse(value)
    if stat.S_ISLNK(mode):
        raise _error(errno.EOPNOTSUPP)
    if key == acl.ACCESS:
        return acl.set_access(mode, entries)
    if not stat.S_ISDIR(mode) and entries:
        raise _error(errno.EACCES)
    return mode, acl.set_default(entries)


def _capability(value: bytes) -> bytes:
    revision = _SIZES.get(len(value), 0)
    (said,) = struct.unpack_from("<I", value) if revision else (0,)
    if not revision or said & ~_EFFECTIVE != revision:
        raise _error(errno.EINVAL)
    if revision == _REVISION_2:
        return value
    root = value[20:]
    if root == b"\xff\xff\xff\xff":
        raise _error(errno.EINVAL)
    if any(root):
        return value
    return struct.pack("<I", _REVISION_2 | said & _EFFECTIVE) + value[4:20]  # what the kernel reads back


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
