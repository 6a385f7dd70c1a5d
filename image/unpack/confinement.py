"""What a worker may do: it reads what strangers wrote, and a hole in its reading is to lead no further than the layer.

The warm process gives up what none of its workers needs (`give_up`); each worker then goes into its directory (`enter`)
and under a filter (`close_in`), which image.worker_filter makes. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterable
from contextlib import suppress

DATA_LIMIT = 512 << 20  # bytes of memory of its own: zstd's largest window is half of it
_ADDRESS_LIMIT = 2 << 30  # bytes
_FILES_LIMIT = 4096
_OOM_SCORE_ADJ = 1000  # the first to go: its layer is pulled again, a pod's memory is not

# linux/capability.h: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SYS_CHROOT, SYS_ADMIN (trusted.* attributes), MKNOD, SETFCAP
_CAPABILITIES = (0, 1, 3, 4, 18, 21, 27, 31)
_CAP_SYS_CHROOT = 18
_CAPABILITIES_END = 64
_CAPABILITY_VERSION = 0x20080522

_CLONE_NEWIPC = 0x08000000
_CLONE_NEWNET = 0x40000000
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SYS_OPEN_TREE = 428  # the same on every architecture
_SYS_MOUNT_SETATTR = 442
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_SPEC_ALLOW = 4  # before Linux 5.16 a filter would turn off speculation, which costs an interpreter a third
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_NODEV_NOSUID_NOEXEC = 0x4 | 0x2 | 0x8

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


class _MountAttributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns"))


def give_up() -> None:
    """Have the calling process, which must be of one thread, and its children keep what unpacking takes.

    What a machine does not let it give up (namespaces in a container, say) stays; capabilities always go.
    """
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(_OOM_SCORE_ADJ))
    for kind, limit in (
        (resource.RLIMIT_DATA, DATA_LIMIT),
        (resource.RLIMIT_AS, _ADDRESS_LIMIT),
        (resource.RLIMIT_NOFILE, _FILES_LIMIT),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        lower = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (lower, lower))
    _libc.unshare(_CLONE_NEWNET | _CLONE_NEWIPC)
    for number in range(_CAPABILITIES_END):
        if number not in _CAPABILITIES:
            _prctl(_PR_CAPBSET_DROP, number)  # EINVAL for those that the kernel does not have
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _keep(_CAPABILITIES)
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def enter(directory: str) -> int:
    """Make `directory` the calling process's root and working directory; a descriptor of it. Raises OSError.

    All is done below descriptors anyway; should a way out be found, it ends in the same directory. It is a mount of its
    own for this process, in which device nodes are not to be opened, though they can be made.
    """
    tree = _libc.syscall(
        ctypes.c_long(_SYS_OPEN_TREE), ctypes.c_int(_AT_FDCWD), os.fsencode(directory),
        ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC),
    )  # fmt: skip
    if tree >= 0:  # else old, or in a sandbox: the directory as it is
        attributes = _MountAttributes(set=_NODEV_NOSUID_NOEXEC)
        _libc.syscall(
            ctypes.c_long(_SYS_MOUNT_SETATTR), ctypes.c_int(tree), b"", ctypes.c_uint(_AT_EMPTY_PATH),
            ctypes.byref(attributes), ctypes.c_size_t(ctypes.sizeof(attributes)),
        )  # fmt: skip
        os.fchdir(tree)  # the descriptor stays open: it holds the mount
    else:
        os.chdir(directory)
    os.chroot(".")
    return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def close_in(program: bytes) -> None:
    """Give up chroot(2), and what the seccomp filter `program` refuses, if there is one."""
    _keep(number for number in _CAPABILITIES if number != _CAP_SYS_CHROOT)
    if not program:
        return
    code = ctypes.create_string_buffer(program, len(program))
    filter_ = _Program(len(program) // 8, ctypes.addressof(code))
    number = _SYS_SECCOMP.get(os.uname().machine)
    if number is not None:
        _libc.syscall(
            ctypes.c_long(number), ctypes.c_uint(_SECCOMP_SET_MODE_FILTER), ctypes.c_uint(_SECCOMP_SPEC_ALLOW),
            ctypes.byref(filter_),
        )  # fmt: skip
    else:
        _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(2), ctypes.byref(filter_), 0, 0)


def _keep(numbers: Iterable[int]) -> None:
    """Have no capabilities but these, of those that are there. Raises OSError."""
    header = _Header(_CAPABILITY_VERSION, 0)
    sets = (_Sets * 2)()
    if _libc.capget(ctypes.byref(header), ctypes.byref(sets)):
        raise _error("capget")
    wanted = sum(1 << number for number in numbers)
    for word in range(2):
        kept = sets[word].permitted & (wanted >> (32 * word) & 0xFFFF_FFFF)
        sets[word] = _Sets(kept, kept, 0)
    if _libc.capset(ctypes.byref(header), ctypes.byref(sets)):
        raise _error("capset")


def _prctl(option: int, value: int) -> None:
    _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def _error(call: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{call}: {os.strerror(code)}")
