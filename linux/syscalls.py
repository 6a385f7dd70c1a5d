"""Wraps the system calls that the standard library lacks, by ctypes. crisp's only access to libc.

Every function raises OSError with the kernel's errno and the path or file system concerned. Calls added since Linux 5.1
have the same number on all architectures (asm-generic/unistd.h).
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import sys

from linux.errors import MissingCall, UnknownCall
from linux.resolve import open_inside
from linux.sealed import seal
from linux.tables import NAMESPACE_FLAGS, namespace_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Iterable
    from typing import Any, Final
else:
    import _signal as signal  # `signal` imports enum, which is slow

libc: Final = ctypes.CDLL(None, use_errno=True)
# clone3 returns twice: the interpreter lock must stay held around it.
_locked_libc: Final = ctypes.PyDLL(None, use_errno=True)
_syscall = libc.syscall
_syscall.restype = ctypes.c_long

_OLD_NUMBERS: Final[dict[str, dict[str, int]]] = {
    "x86_64": {"pivot_root": 155, "keyctl": 250, "setdomainname": 171, "ioprio_set": 251,
               "set_mempolicy": 238, "seccomp": 317, "bpf": 321},
    "aarch64": {"pivot_root": 41, "keyctl": 219, "setdomainname": 162, "ioprio_set": 30,
                "set_mempolicy": 237, "seccomp": 277, "bpf": 280},
}  # fmt: skip
# Read once: a container's personality(2) can change what uname says later.
_old = _OLD_NUMBERS.get(os.uname().machine, {})

_CPU_MASK_BYTES: Final = 1024  # 8192 CPUs, the most that Linux can be built for

SYS_OPEN_TREE: Final = 428
SYS_MOVE_MOUNT: Final = 429
SYS_FSOPEN: Final = 430
SYS_FSCONFIG: Final = 431
SYS_FSMOUNT: Final = 432
SYS_CLONE3: Final = 435
SYS_CLOSE_RANGE: Final = 436
SYS_OPENAT2: Final = 437
SYS_MOUNT_SETATTR: Final = 442
SYS_QUOTACTL_FD: Final = 443

# clone(2), unshare(2), setns(2)
CLONE_NEWTIME: Final = NAMESPACE_FLAGS["time"]
CLONE_NEWNS: Final = NAMESPACE_FLAGS["mount"]
CLONE_NEWCGROUP: Final = NAMESPACE_FLAGS["cgroup"]
CLONE_NEWUTS: Final = NAMESPACE_FLAGS["uts"]
CLONE_NEWIPC: Final = NAMESPACE_FLAGS["ipc"]
CLONE_NEWUSER: Final = NAMESPACE_FLAGS["user"]
CLONE_NEWPID: Final = NAMESPACE_FLAGS["pid"]
CLONE_NEWNET: Final = NAMESPACE_FLAGS["network"]
CLONE_PIDFD: Final = 0x00001000
CLONE_PARENT: Final = 0x00008000
CLONE_INTO_CGROUP: Final = 0x200000000

# mount(2), umount2(2)
MS_RDONLY: Final = 1
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
OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x04
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_SET_FD: Final = 5
FSCONFIG_CMD_CREATE: Final = 6
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10
IN_ROOT: Final = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
CLOSE_RANGE_CLOEXEC: Final = 4

# prctl(2)
PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_SET_SECCOMP: Final = 22
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38

PROC_SUPER_MAGIC: Final = 0x9FA0
SYSFS_MAGIC: Final = 0x62656572
_STATFS_BYTES: Final = 256  # struct statfs is 120 on 64-bit machines
KEYCTL_JOIN_SESSION_KEYRING: Final = 1
_IOPRIO_WHO_PROCESS: Final = 1
_SECCOMP_MODE_FILTER: Final = 2
SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_SPEC_ALLOW: Final = 4
SECCOMP_NEW_LISTENER: Final = 8
_SOCK_FILTER_BYTES: Final = 8
_ESRCH: Final = 3
_EINVAL: Final = 22
_EAGAIN: Final = 11
_ENOSYS: Final = 38
_OPENINGS: Final = 128  # attempts: a rename or mount anywhere on the machine while `..` is resolved makes one fail


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


class _SchedAttr(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
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


# The Linux version that introduced each call.
_SINCE: Final = {
    "pidfd_send_signal": "5.1",
    "open_tree": "5.2",
    "move_mount": "5.2",
    "fsopen": "5.2",
    "fsconfig": "5.2",
    "fsmount": "5.2",
    "clone3": "5.3",
    "pidfd_open": "5.3",
    "mount_setattr": "5.12",
}


def check(result: int, about: str, call: str = "") -> int:
    """Return what libc returned, or raise OSError about `about`. `call` names a call that the kernel may lack."""
    if result < 0:
        raise failure(ctypes.get_errno(), about, call)
    return result


def failure(errno: int, about: str, call: str) -> OSError:
    if errno == _ENOSYS and call in _SINCE:
        return MissingCall(call, _SINCE[call])
    return OSError(errno, os.strerror(errno), about)


def _number(name: str) -> int:
    try:
        return _old[name]
    except KeyError:
        raise UnknownCall(name, os.uname().machine) from None


def clone(flags: int = 0, cgroup: int | None = None) -> tuple[int, int]:
    """Fork with clone3(2), into the new namespaces of `flags` and into the v2 cgroup open at `cgroup`.

    Returns (pid, pidfd) in the parent and (0, -1) in the child. The child cannot import modules any more. Only for
    single-threaded processes.
    """
    pidfd = ctypes.c_int(-1)
    args = _CloneArgs(flags=flags | CLONE_PIDFD, pidfd=ctypes.addressof(pidfd), exit_signal=17)
    if cgroup is not None:
        args.flags |= CLONE_INTO_CGROUP
        args.cgroup = cgroup
    # As os.fork() does: import lock, interpreter state and at-fork handlers.
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = _locked_libc.syscall(SYS_CLONE3, ctypes.byref(args), ctypes.sizeof(args))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        seal()
        return 0, -1
    errno = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise failure(errno, "clone3", "clone3")
    return pid, pidfd.value


_locked_libc.syscall.restype = ctypes.c_long


def fork() -> int:
    """Fork as os.fork does. The child cannot import modules any more."""
    pid = os.fork()
    if pid == 0:
        seal()
    return pid


def locked_syscall(number: int, *arguments: Any, about: str) -> int:
    """Make a system call by its number, with the interpreter lock held, since it may return twice."""
    return check(_locked_libc.syscall(number, *arguments), about)


def unshare(flags: int) -> None:
    check(libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, flags: int) -> None:
    """Join the namespace open at `fd`; if `fd` is a pidfd, join that process's namespaces named by `flags`.

    With a pidfd this needs the host's /proc before Linux 5.8.
    """
    if libc.setns(ctypes.c_int(fd), ctypes.c_int(flags)) == 0:
        return
    errno = ctypes.get_errno()
    process = _process_of(fd) if errno == _EINVAL else 0
    if not process:
        raise OSError(errno, os.strerror(errno), "setns")
    wanted = [(flag, namespace_file(process, kind)) for kind, flag in NAMESPACE_FLAGS.items() if flags & flag]
    opened = [(flag, os.open(path, os.O_RDONLY | os.O_CLOEXEC)) for flag, path in wanted]
    try:
        for flag, namespace in opened:
            check(libc.setns(ctypes.c_int(namespace), ctypes.c_int(flag)), "setns")
    finally:
        for _flag, namespace in opened:
            os.close(namespace)


def _process_of(pidfd: int) -> int:
    """Return the pid of the process that a pidfd refers to, 0 if the descriptor is no pidfd."""
    try:
        with open(f"/proc/self/fdinfo/{pidfd}") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("Pid:")), 0)
    except OSError:
        return 0


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    def encoded(text: str | None) -> bytes | None:
        return None if text is None else os.fsencode(text)

    check(
        libc.mount(encoded(source), os.fsencode(target), encoded(fstype), ctypes.c_ulong(flags), encoded(data)), target
    )


def umount2(target: str, flags: int = 0) -> None:
    check(libc.umount2(os.fsencode(target), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    check(_syscall(_number("pivot_root"), os.fsencode(new_root), os.fsencode(put_old)), new_root)


def open_tree(dirfd: int, path: str, flags: int) -> int:
    return check(_syscall(SYS_OPEN_TREE, dirfd, os.fsencode(path), flags | OPEN_TREE_CLOEXEC), path, "open_tree")


def move_mount(from_fd: int, to_fd: int, to_path: str = "") -> None:
    """Attach the detached mount `from_fd` on `to_path` below `to_fd` ("" means on `to_fd` itself)."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if to_path else MOVE_MOUNT_T_EMPTY_PATH)
    result = _syscall(SYS_MOVE_MOUNT, from_fd, b"", to_fd, os.fsencode(to_path), flags)
    check(result, to_path or f"fd {to_fd}", "move_mount")


def mount_setattr(
    fd: int, path: str, flags: int, *, attr_set: int = 0, attr_clr: int = 0, propagation: int = 0, userns: int = 0
) -> None:
    """Change the attributes and the propagation of a mount, or with AT_RECURSIVE of its whole tree (Linux 5.12).

    `userns` is a descriptor of the user namespace whose mapping MOUNT_ATTR_IDMAP applies.
    """
    attr = _MountAttr(attr_set, attr_clr, propagation, userns)
    check(
        _syscall(SYS_MOUNT_SETATTR, fd, os.fsencode(path), flags, ctypes.byref(attr), ctypes.sizeof(attr)),
        path or f"fd {fd}",
        "mount_setattr",
    )


def fsopen(fstype: str) -> int:
    return check(_syscall(SYS_FSOPEN, os.fsencode(fstype), 1), fstype, "fsopen")


def fsconfig_string(fd: int, key: str, value: str) -> None:
    result = _syscall(SYS_FSCONFIG, fd, FSCONFIG_SET_STRING, os.fsencode(key), os.fsencode(value), 0)
    check(result, f"{key}={value}", "fsconfig")


def fsconfig_flag(fd: int, key: str) -> None:
    check(_syscall(SYS_FSCONFIG, fd, FSCONFIG_SET_FLAG, os.fsencode(key), None, 0), key, "fsconfig")


def fsconfig_descriptor(fd: int, key: str, value: int) -> None:
    check(_syscall(SYS_FSCONFIG, fd, FSCONFIG_SET_FD, os.fsencode(key), None, value), key, "fsconfig")


def fsconfig_create(fd: int) -> None:
    check(_syscall(SYS_FSCONFIG, fd, FSCONFIG_CMD_CREATE, None, None, 0), "fsconfig create", "fsconfig")


def fsmount(fd: int, attrs: int = 0) -> int:
    """Return a detached mount of the file system configured at `fd`."""
    return check(_syscall(SYS_FSMOUNT, fd, 1, attrs), "fsmount", "fsmount")


def quotactl_fd(fd: int, command: int, identity: int, buffer: bytearray) -> None:
    """Do a command of quotactl_fd(2) on the file system of an open file (Linux 5.14). `buffer` is its argument."""
    memory = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    result = _syscall(SYS_QUOTACTL_FD, fd, ctypes.c_uint(command), ctypes.c_uint(identity), memory)
    check(result, f"quota {identity}", "quotactl_fd")


def openat2(dirfd: int, path: str | bytes, flags: int, resolve: int) -> int:
    """Open as openat2(2). Before Linux 5.6 in user space, only with RESOLVE_IN_ROOT and without RESOLVE_NO_XDEV."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    errno, raw, about = _EAGAIN, os.fsencode(path), os.fsdecode(path)
    for _ in range(_OPENINGS):
        result: int = _syscall(SYS_OPENAT2, dirfd, raw, ctypes.byref(how), ctypes.sizeof(how))
        if result >= 0:
            return result
        errno = ctypes.get_errno()
        if errno != _EAGAIN:
            break
    if errno == _ENOSYS and resolve & RESOLVE_IN_ROOT and not resolve & RESOLVE_NO_XDEV:
        return open_inside(dirfd, about, flags, follow=not resolve & RESOLVE_NO_SYMLINKS)
    raise failure(errno, about, "")


def open_in_root(root: int, path: str, flags: int, resolve: int = IN_ROOT) -> int:
    """Open `path` as if the directory `root` were `/`; never leaves it."""
    return openat2(root, path.lstrip("/") or ".", flags, resolve)


def has_ended(pidfd: int) -> bool:
    """Return whether the process is dead, if perhaps not reaped."""
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    return bool(ended.poll(0))


def pidfd_open(pid: int) -> int:
    """Call os.pidfd_open. If the kernel lacks the call, the error names the Linux version that has it."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        raise failure(error.errno or 0, f"process {pid}", "pidfd_open") from None


def pidfd_send_signal(pidfd: int, number: int) -> None:
    """Call signal.pidfd_send_signal. If the kernel lacks the call, the error names the Linux version that has it."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except OSError as error:
        raise failure(error.errno or 0, f"signal {number}", "pidfd_send_signal") from None


def prctl(option: int, first: int = 0, second: int = 0) -> int:
    arguments = (ctypes.c_ulong(first), ctypes.c_ulong(second), ctypes.c_ulong(0), ctypes.c_ulong(0))
    return check(libc.prctl(option, *arguments), f"prctl {option}")


def load_filter(program: bytes, flags: int) -> int:
    """Apply a seccomp filter, an array of struct sock_filter, to the calling thread for good (seccomp(2)).

    Returns the descriptor of the listener if `flags` ask for one, else 0. Raises OSError: ESRCH if a thread could not
    be synchronised (SECCOMP_FILTER_FLAG_TSYNC).
    """
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a count, and a pointer aligned to its size
    described = struct.pack("@HP", len(program) // _SOCK_FILTER_BYTES, ctypes.addressof(code))
    filter_ = ctypes.create_string_buffer(described)
    if "seccomp" not in _old and not flags:
        return check(libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(filter_), 0, 0), "")
    mode, wide = ctypes.c_long(SECCOMP_SET_MODE_FILTER), ctypes.c_long(flags)
    result = check(_syscall(ctypes.c_long(_number("seccomp")), mode, wide, ctypes.byref(filter_)), "seccomp filter")
    if result and not flags & SECCOMP_NEW_LISTENER:
        raise OSError(_ESRCH, os.strerror(_ESRCH), f"thread {result}")
    return result


def bpf(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    """Call bpf(2). The kernel may write to `attributes`."""
    size = ctypes.c_long(len(attributes))
    return check(_syscall(ctypes.c_long(_number("bpf")), ctypes.c_long(command), ctypes.byref(attributes), size), "bpf")


def syncfs(fd: int) -> None:
    """Write everything cached for the file system of an open file to disk."""
    check(libc.syncfs(fd), f"fd {fd}")


def filesystem_type(fd: int) -> int:
    """Return the magic number of the file system that an open file (also O_PATH) is on (fstatfs(2))."""
    result = ctypes.create_string_buffer(_STATFS_BYTES)
    check(libc.fstatfs(fd, result), f"fd {fd}")
    return filesystem_type_of(result.raw)


def filesystem_type_of(statfs: bytes) -> int:
    """Return the magic number in a struct statfs."""
    return int.from_bytes(statfs[:8], sys.byteorder)  # f_type, a long


def open_how(flags: int, resolve: int) -> ctypes.Structure:
    """Build the `open_how` argument of openat2(2)."""
    return _OpenHow(flags, 0, resolve)


def set_name(name: str) -> None:
    """Set the name that ps and top show (PR_SET_NAME, 15 bytes)."""
    libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def set_domainname(name: str) -> None:
    raw = os.fsencode(name)
    check(_syscall(_number("setdomainname"), raw, len(raw)), name)


def sched_attributes(
    policy: int,
    *,
    flags: int = 0,
    nice: int = 0,
    priority: int = 0,
    runtime: int = 0,
    deadline: int = 0,
    period: int = 0,
) -> ctypes.Structure:
    """Build the argument of sched_setattr(2); times in nanoseconds. Keep a reference to it until the call."""
    return _SchedAttr(ctypes.sizeof(_SchedAttr), policy, flags, nice, priority, runtime, deadline, period)


def use_every_cpu() -> None:
    """Let the calling process run on all CPUs of its cgroup: the kernel intersects a mask of all ones with them."""
    every = b"\xff" * _CPU_MASK_BYTES
    check(libc.sched_setaffinity(0, ctypes.c_size_t(_CPU_MASK_BYTES), every), "", "sched_setaffinity")


def ioprio_set(priority: int) -> None:
    """Set the caller's I/O class (bits 13 and up) and priority (ioprio_set(2))."""
    check(_syscall(_number("ioprio_set"), _IOPRIO_WHO_PROCESS, 0, priority), f"I/O priority {priority:#x}")


def set_mempolicy(mode: int, nodes: Iterable[int]) -> None:
    """Set from which nodes the caller's memory is allocated (set_mempolicy(2))."""
    bits = sum(1 << node for node in nodes)
    words = max(1, -(-bits.bit_length() // 64))
    mask = (ctypes.c_uint64 * words)(*(bits >> 64 * word & (1 << 64) - 1 for word in range(words)))
    # The kernel reads one bit less than `maxnode` says.
    arguments = (ctypes.byref(mask), ctypes.c_ulong(64 * words + 1)) if bits else (None, ctypes.c_ulong(0))
    check(_syscall(_number("set_mempolicy"), mode, *arguments), f"mode {mode:#x}")


def personality(persona: int) -> None:
    """Set the caller's execution domain (personality(2))."""
    check(libc.personality(ctypes.c_ulong(persona)), f"personality {persona:#x}")


def join_new_session_keyring(name: str) -> None:
    """Replace the session keyring by an empty one with that name (keyctl_join_session_keyring(3))."""
    check(_syscall(_number("keyctl"), KEYCTL_JOIN_SESSION_KEYRING, os.fsencode(name)), "session keyring")


def close_all_from(first: int, *, keep: Iterable[int]) -> None:
    """Close all descriptors from `first` up except those in `keep` (close_range(2); one by one before Linux 5.9)."""
    low = first
    for fd in (*sorted(fd for fd in set(keep) if fd >= first), 1 << 32):
        if low < fd:
            high = fd - 1
            result = _syscall(SYS_CLOSE_RANGE, ctypes.c_uint(low), ctypes.c_uint(high), 0)
            if result < 0 and ctypes.get_errno() == _ENOSYS:
                # Not by /proc, which the container may have forged.
                os.closerange(low, min(fd, os.sysconf("SC_OPEN_MAX")))
            else:
                check(result, f"close_range {low} {high}")
        low = fd + 1


def has_close_range() -> bool:
    """Whether the kernel has close_range(2), which Linux 5.9 brought. Closes nothing."""
    return int(_syscall(SYS_CLOSE_RANGE, ctypes.c_uint(0xFFFFFFFF), ctypes.c_uint(0xFFFFFFFF), 0)) == 0


def has_mount_setattr() -> bool:
    """Whether the kernel has mount_setattr(2), which Linux 5.12 brought. Changes nothing."""
    attr = _MountAttr(0, 0, 0, 0)
    result = _syscall(SYS_MOUNT_SETATTR, -1, b"", AT_EMPTY_PATH, ctypes.byref(attr), ctypes.sizeof(attr))
    return int(result) == 0 or ctypes.get_errno() != _ENOSYS


def close_on_exec_from(first: int) -> None:
    """Mark all descriptors from `first` up close-on-exec (close_range(2), Linux 5.11; else by /proc)."""
    if _syscall(SYS_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(0xFFFFFFFF), CLOSE_RANGE_CLOEXEC) == 0:
        return
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= first:
            try:
                os.set_inheritable(int(name), False)
            except OSError:
                continue  # the descriptor of the listing itself


def set_process_title(title: str) -> None:
    """Overwrite the arguments that /proc/PID/cmdline shows. The title is cut to the length of the original ones."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rsplit(b") ", 1)[1].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end: fields 48 and 49 of proc_pid_stat(5)
    room = end - start
    if start and room > 0:
        raw = os.fsencode(title)[: room - 1]
        ctypes.memmove(start, raw.ljust(room, b"\0"), room)


assert sys.maxsize > 2**32, "crisp needs a 64-bit Python"
