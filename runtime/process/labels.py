"""Writes the label for the next execve to the process's own attribute in the container's /proc.

A forged /proc would swallow the label, and a partly covered one would redirect it (CVE-2019-16884, CVE-2025-52881). So
everything is opened without links and on one single mount of a proc file system, from its root on.
"""

from __future__ import annotations

import ctypes
import errno
import os

from linux import syscalls
from runtime.errors import NotSupported, failing
from runtime.seccomp.passage import Passage
from runtime.spec import values as oci

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

ONE_MOUNT: Final = syscalls.RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
STEP: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
MISSING: Final = (errno.ENOENT, errno.ENOTDIR)
_STATX_MNT_ID: Final = 0x1000
_STATX_BYTES: Final = 256
_STATX_MASK_AT, _STATX_MNT_ID_AT = 0, 144
LINK_BYTES: Final = 64
NO_PROC: Final = "/proc is not a proc file system"
NO_MODULE: Final = "the security module is not enabled"


def labels_of(process: oci.Process) -> list[tuple[str, tuple[str, ...]]]:
    """Return what to write, and the attributes in a process's /proc of which the first that exists takes it."""
    found: list[tuple[str, tuple[str, ...]]] = []
    if process.apparmor_profile:
        found.append((f"exec {process.apparmor_profile}", ("attr/apparmor/exec", "attr/exec")))
    if process.selinux_label:
        found.append((process.selinux_label, ("attr/exec",)))
    return found


def set_labels(process: oci.Process, passage: Passage) -> None:
    """Set the labels of the configuration for the next execve. Raises RuntimeCoreError."""
    for label, paths in labels_of(process):
        _write_attribute(paths, label, passage)


def _write_attribute(paths: tuple[str, ...], label: str, passage: Passage) -> None:
    with failing("apply label", label):
        proc = passage.call("openat", syscalls.AT_FDCWD, b"/proc", STEP | os.O_DIRECTORY)
        try:
            _require_proc(proc, "/proc", label, passage)
            own = _own_directory(proc, passage)
            for path in paths:
                attribute = _open_attribute(proc, f"{own}/{path}", passage)
                if attribute < 0:
                    continue
                try:
                    _require_proc(attribute, f"/proc/thread-self/{path}", label, passage)
                    text = label.encode()
                    passage.call("write", attribute, text, len(text))
                    return
                finally:
                    passage.call("close", attribute)
        finally:
            passage.call("close", proc)
    raise NotSupported("apply label", label, NO_MODULE)


def _require_proc(fd: int, path: str, label: str, passage: Passage) -> None:
    result = ctypes.create_string_buffer(_STATX_BYTES)
    passage.call("fstatfs", fd, result)
    # The inode number of its root proves nothing: a tmpfs's root has inode 1 as well.
    if syscalls.filesystem_type_of(result.raw) != syscalls.PROC_SUPER_MAGIC:
        reason = NO_PROC if path == "/proc" else f"{path} is not a file of proc"
        raise NotSupported("apply label", label, reason)


def _own_directory(proc: int, passage: Passage) -> str:
    """Read the link `thread-self`, which only the root of a proc file system has and which nothing can cover."""
    buffer = ctypes.create_string_buffer(LINK_BYTES)
    length = passage.call("readlinkat", proc, b"thread-self", buffer, LINK_BYTES)
    own = buffer.raw[:length].decode()
    process, task, thread = own.split("/") if own.count("/") == 2 else ("", "", "")
    if not (process.isdigit() and task == "task" and thread.isdigit()):
        raise OSError(errno.ELOOP, "/proc/thread-self is not the kernel's link")
    return own


def _open_attribute(proc: int, path: str, passage: Passage) -> int:
    """Open the attribute for writing; -1 if the kernel does not have it."""
    how = syscalls.open_how(os.O_WRONLY | os.O_CLOEXEC, ONE_MOUNT)
    try:
        return passage.call("openat2", proc, path.encode(), how, ctypes.sizeof(how))
    except OSError as error:
        if error.errno in MISSING:
            return -1
        if error.errno != errno.ENOSYS:
            raise
    try:
        return _walk(proc, path.split("/"), passage)
    except OSError as error:
        if error.errno in MISSING:
            return -1
        raise


def _walk(proc: int, parts: list[str], passage: Passage) -> int:
    """Open the attribute without openat2(2) (before Linux 5.6). Compares mount ids, which statx(2) has since 5.8."""
    mount = _mount_of(proc, passage)
    directory = passage.call("openat", proc, b".", STEP | os.O_DIRECTORY)
    try:
        for depth, part in enumerate(parts, 1):
            last = depth == len(parts)
            flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC if last else STEP | os.O_DIRECTORY
            entry = passage.call("openat", directory, part.encode(), flags)
            if _mount_of(entry, passage) != mount:
                passage.call("close", entry)
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            if last:
                return entry
            passage.call("close", directory)
            directory = entry
    finally:
        passage.call("close", directory)
    raise AssertionError("no part")


def _mount_of(fd: int, passage: Passage) -> int:
    found = ctypes.create_string_buffer(_STATX_BYTES)
    passage.call("statx", fd, b"", syscalls.AT_EMPTY_PATH, _STATX_MNT_ID, found)
    if not int.from_bytes(found.raw[_STATX_MASK_AT : _STATX_MASK_AT + 4], "little") & _STATX_MNT_ID:
        raise OSError(errno.EXDEV, "this kernel's statx(2) has no mount ids")
    return int.from_bytes(found.raw[_STATX_MNT_ID_AT : _STATX_MNT_ID_AT + 8], "little")
