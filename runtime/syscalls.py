"""The kernel calls that the standard library lacks, by ctypes; the one seam between crisp and the kernel.

Every function raises OSError with the kernel's errno and the path or file system it was about. Numbers are those of
the generic table (asm-generic/unistd.h) for calls added since Linux 5.1, which all architectures share.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

libc: Final = ctypes.CDLL(None, use_errno=True)
# clone3 returns twice: the interpreter lock must not be dropped around it.
_locked_libc: Final = ctypes.PyDLL(None, use_errno=True)
_syscall = libc.syscall
_syscall.restype = ctypes.c_long

_OLD_NUMBERS: Final[dict[str, dict[str, int]]] = {
    "x86_64": {"pivot_root": 155, "keyctl": 250, "setdomainname": 171},
    "aarch64": {"pivot_root": 41, "keyctl": 219, "setdomainname": 162},
}
_old = _OLD_NUMBERS.get(os.uname().machine, {})

SYS_OPEN_TREE: Final = 428
SYS_MOVE_MOUNT: Final = 429
SYS_FSOPEN: Final = 430
SYS_FSCONFIG: Final = 431
SYS_FSMOUNT: Final = 432
SYS_CLONE3: Final = 435
SYS_CLOSE_RANGE: Final = 436
SYS_OPENAT2: Final = 437
SYS_MOUNT_SETATTR: Final = 442

# clone(2), unshare(2), setns(2)
CLONE_NEWTIME: Final = 0x00000080
CLONE_PIDFD: Final = 0x00001000
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
CLONE_INTO_CGROUP: Final = 0x200000000

# mount(2), umount2(2)
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MS_UNBINDABLE: Final = 1 << 17
MNT_DETACH: Final = 2

# mount_setattr(2), fsmount(2)
MOUNT_ATTR_RDONLY: Final = 0x01
MOUNT_ATTR_NOSUID: Final = 0x02
MOUNT_ATTR_NODEV: Final = 0x04
MOUNT_ATTR_NOEXEC: Final = 0x08
MOUNT_ATTR_ATIME: Final = 0x70  # the mask; relatime is 0
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_STRICTATIME: Final = 0x20
MOUNT_ATTR_NODIRATIME: Final = 0x80
MOUNT_ATTR_IDMAP: Final = 0x100000
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
AT_SYMLINK_NOFOLLOW: Final = 0x100
OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x04
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_CMD_CREATE: Final = 6
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_IN_ROOT: Final = 0x10
CLOSE_RANGE_CLOEXEC: Final = 4

# prctl(2)
PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38

_KEYCTL_JOIN_SESSION_KEYRING: Final = 1


class _CloneArgs(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    ]


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


def _check(result: int, about: str) -> int:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), about)
    return result


def _number(name: str) -> int:
    try:
        return _old[name]
    except KeyError:
        raise OSError(38, f"{name} has no number for {os.uname().machine} in {__name__}") from None


def clone(flags: int = 0, cgroup: int | None = None) -> tuple[int, int]:
    """Fork with clone3(2): new namespaces by `flags`, straight into the v2 cgroup open at `cgroup`.

    Returns (pid, pidfd) in the parent and (0, -1) in the child. Only for single-threaded processes.
    """
    pidfd = ctypes.c_int(-1)
    args = _CloneArgs(flags=flags | CLONE_PIDFD, pidfd=ctypes.addressof(pidfd), exit_signal=17)
    if cgroup is not None:
        args.flags |= CLONE_INTO_CGROUP
        args.cgroup = cgroup
    # Bracketed as os.fork() does: import lock, interpreter state and at-fork handlers.
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = _locked_libc.syscall(SYS_CLONE3, ctypes.byref(args), ctypes.sizeof(args))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0, -1
    errno = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(errno, os.strerror(errno), "clone3")
    return pid, pidfd.value


_locked_libc.syscall.restype = ctypes.c_long


def unshare(flags: int) -> None:
    _check(libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, flags: int) -> None:
    """Join the namespace open at `fd`, or with a pidfd (Linux 5.8) all of that process's that `flags` names."""
    _check(libc.setns(ctypes.c_int(fd), ctypes.c_int(flags)), "setns")


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    def encoded(text: str | None) -> bytes | None:
        return None if text is None else os.fsencode(text)

    _check(
        libc.mount(encoded(source), os.fsencode(target), encoded(fstype), ctypes.c_ulong(flags), encoded(data)), target
    )


def umount2(target: str, flags: int = 0) -> None:
    _check(libc.umount2(os.fsencode(target), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    _check(_syscall(_number("pivot_root"), os.fsencode(new_root), os.fsencode(put_old)), new_root)


def open_tree(dirfd: int, path: str, flags: int) -> int:
    return _check(_syscall(SYS_OPEN_TREE, dirfd, os.fsencode(path), flags | OPEN_TREE_CLOEXEC), path)


def move_mount(from_fd: int, to_fd: int, to_path: str = "") -> None:
    """Attach the detached mount `from_fd` on `to_path` below `to_fd` ("" means on `to_fd` itself)."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if to_path else MOVE_MOUNT_T_EMPTY_PATH)
    _check(_syscall(SYS_MOVE_MOUNT, from_fd, b"", to_fd, os.fsencode(to_path), flags), to_path or f"fd {to_fd}")


def mount_setattr(
    fd: int, path: str, flags: int, *, attr_set: int = 0, attr_clr: int = 0, propagation: int = 0, userns: int = 0
) -> None:
    """Set and clear attributes and the propagation of a mount, or of its tree with AT_RECURSIVE (Linux 5.12).

    `userns` is a descriptor of the user namespace that MOUNT_ATTR_IDMAP maps by.
    """
    attr = _MountAttr(attr_set, attr_clr, propagation, userns)
    _check(
        _syscall(SYS_MOUNT_SETATTR, fd, os.fsencode(path), flags, ctypes.byref(attr), ctypes.sizeof(attr)),
        path or f"fd {fd}",
    )


def fsopen(fstype: str) -> int:
    return _check(_syscall(SYS_FSOPEN, os.fsencode(fstype), 1), fstype)


def fsconfig_string(fd: int, key: str, value: str) -> None:
    _check(_syscall(SYS_FSCONFIG, fd, FSCONFIG_SET_STRING, os.fsencode(key), os.fsencode(value), 0), f"{key}={value}")


def fsconfig_flag(fd: int, key: str) -> None:
    _check(_syscall(SYS_FSCONFIG, fd, FSCONFIG_SET_FLAG, os.fsencode(key), None, 0), key)


def fsconfig_create(fd: int) -> None:
    _check(_syscall(SYS_FSCONFIG, fd, FSCONFIG_CMD_CREATE, None, None, 0), "fsconfig create")


def fsmount(fd: int, attrs: int = 0) -> int:
    """A detached mount of the file system configured at `fd`."""
    return _check(_syscall(SYS_FSMOUNT, fd, 1, attrs), "fsmount")


def openat2(dirfd: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    return _check(
        _syscall(SYS_OPENAT2, dirfd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)),
        path,
    )


def prctl(option: int, arg: int = 0) -> None:
    _check(libc.prctl(option, ctypes.c_ulong(arg), 0, 0, 0), f"prctl {option}")


def set_name(name: str) -> None:
    """The name that ps and top show (PR_SET_NAME, 15 bytes)."""
    libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def set_domainname(name: str) -> None:
    raw = os.fsencode(name)
    _check(_syscall(_number("setdomainname"), raw, len(raw)), name)


def join_new_session_keyring(name: str) -> None:
    """Leave the session keyring for an empty one of that name (keyctl_join_session_keyring(3))."""
    _check(_syscall(_number("keyctl"), _KEYCTL_JOIN_SESSION_KEYRING, os.fsencode(name)), "session keyring")


def close_all_from(first: int, *, keep: Iterable[int]) -> None:
    """Close every descriptor from `first` up but those of `keep` (close_range(2), Linux 5.9)."""
    low = first
    for fd in (*sorted(fd for fd in set(keep) if fd >= first), 1 << 32):
        if low < fd:
            high = fd - 1
            _check(_syscall(SYS_CLOSE_RANGE, ctypes.c_uint(low), ctypes.c_uint(high), 0), f"close_range {low} {high}")
        low = fd + 1


def close_on_exec_from(first: int) -> None:
    """Mark every descriptor from `first` up close-on-exec (close_range(2), Linux 5.11; else by /proc)."""
    if _syscall(SYS_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(0xFFFFFFFF), CLOSE_RANGE_CLOEXEC) == 0:
        return
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= first:
            try:
                os.set_inheritable(int(name), False)
            except OSError:
                continue  # the listing's own descriptor


def set_process_title(title: str) -> None:
    """Overwrite the argument area that /proc/PID/cmdline shows. No longer than the arguments given at exec."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rsplit(b") ", 1)[1].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end: fields 48 and 49 of proc_pid_stat(5)
    room = end - start
    if start and room > 0:
        raw = os.fsencode(title)[: room - 1]
        ctypes.memmove(start, raw.ljust(room, b"\0"), room)


assert sys.maxsize > 2**32, "crisp needs a 64-bit Python"
