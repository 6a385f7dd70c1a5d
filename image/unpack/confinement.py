"""Confines workers: they parse untrusted data, and a bug in that must affect no more than the layer.

The warm process gives up what no worker needs (`give_up`). Each worker then enters its directory (`enter`), or becomes
somebody without rights (`enter_skeleton`, `become_nobody`), keeps the `Rights` of its work and loads a filter
(`close_in`), which image.unpack.worker_filter compiles.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from linux import capabilities, syscalls
from linux.errors import UnknownCall

DATA_LIMIT = 512 << 20  # bytes of private memory: zstd's largest window is half of it
_ADDRESS_LIMIT = 2 << 30  # bytes
_FILES_LIMIT = 4096
_OOM_SCORE_ADJ = 1000  # killed first: a layer can be pulled again, a pod's memory cannot

ROOT_FILTER, TREE_FILTER, FILES_FILTER = range(3)  # the filters, in the order in which they come

# linux/capability.h. Layers have directories of all owners and modes, and attributes (trusted.*) that only SYS_ADMIN
# reads and writes.
_CHOWN, _DAC_OVERRIDE, _FOWNER, _FSETID, _SYS_ADMIN, _MKNOD, _SETFCAP = 0, 1, 3, 4, 21, 27, 31


class Rights(NamedTuple):
    """What a worker has left when its work begins."""

    capabilities: tuple[int, ...]
    filter: int


UNPACKS = Rights((_CHOWN, _DAC_OVERRIDE, _FOWNER, _FSETID, _SYS_ADMIN, _MKNOD, _SETFCAP), ROOT_FILTER)
SETTLES = Rights((_CHOWN, _DAC_OVERRIDE, _FOWNER, _FSETID, _SYS_ADMIN, _SETFCAP), ROOT_FILTER)
LOOKS_BELOW = Rights((_DAC_OVERRIDE, _SYS_ADMIN), ROOT_FILTER)
REMOVES = Rights((_DAC_OVERRIDE, _FOWNER), ROOT_FILTER)
COUNTS = Rights((_DAC_OVERRIDE,), ROOT_FILTER)
MAKES_A_SKELETON = Rights((), TREE_FILTER)
HAS_DESCRIPTORS = Rights((), FILES_FILTER)

_TO_BEGIN_WITH = (*UNPACKS.capabilities, 6, 7, 18)  # SETGID and SETUID (`become_nobody`), SYS_CHROOT
_NOBODY = 65533  # an id that belongs to none of the machine's users
_SKELETON_INODES = range(1 << 16, 1 << 20)  # about as many KiB of the kernel's memory, attributes included
_SKELETON_SHARE = 64  # of the machine's memory
_SKELETON_BYTES = 256 << 20  # of long symbolic links; there is no other content
_NODEV_NOSUID_NOEXEC = syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC


def give_up() -> None:
    """Reduce the calling single-threaded process, and its children, to what unpacking needs.

    What the machine does not allow (namespaces in a container, for example) is skipped; capabilities are always
    dropped.
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
    with suppress(OSError):
        syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC)
    for number in range(capabilities.MOST):
        if number not in _TO_BEGIN_WITH:
            with suppress(OSError):  # EINVAL for those that the kernel does not have
                capabilities.drop_bounding(number)
    with suppress(OSError):
        capabilities.clear_ambient()
    _keep(_TO_BEGIN_WITH)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)


def enter(directory: str) -> int:
    """Make `directory` the calling process's root and working directory. Returns its descriptor. Raises OSError.

    Files are accessed relative to descriptors anyway; if a way out is found it ends in this directory. It becomes a
    private mount of this process, in which device nodes can be made but not opened.
    """
    try:
        tree = syscalls.open_tree(syscalls.AT_FDCWD, directory, syscalls.OPEN_TREE_CLONE)
    except OSError:  # an old kernel, or a sandbox: the directory as it is
        os.chdir(directory)
    else:
        with suppress(OSError):
            syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH, attr_set=_NODEV_NOSUID_NOEXEC)
        os.fchdir(tree)  # the descriptor stays open, which keeps the mount
    os.chroot(".")
    return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def enter_skeleton() -> int:
    """Make an empty tmpfs, in no mount table, the calling process's root, and become its owner, who has no rights.

    Returns its descriptor. What it takes of memory is bounded, and counted in the daemon's cgroup. Raises OSError.
    """
    size = min(_share(), _SKELETON_BYTES)
    context = syscalls.fsopen("tmpfs")
    try:
        for key, value in (("nr_inodes", str(_skeleton_inodes())), ("size", str(size)), ("mode", "0700")):
            syscalls.fsconfig_string(context, key, value)
        syscalls.fsconfig_create(context)
        tree = syscalls.fsmount(context, _NODEV_NOSUID_NOEXEC)
    finally:
        os.close(context)
    os.fchdir(tree)  # the descriptor stays open, which keeps the mount
    os.chroot(".")
    root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with suppress(OSError):  # in a user namespace that does not have the id
        os.fchown(root, _NOBODY, _NOBODY)
    become_nobody()
    return root


def skeleton_memory() -> int:
    """Return how many bytes of memory the inodes of one worker's skeleton may take."""
    return 1024 * _skeleton_inodes()


def _skeleton_inodes() -> int:
    return min(max(_share() // 1024, _SKELETON_INODES.start), _SKELETON_INODES.stop)


def _share() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _SKELETON_SHARE


def is_full(skeleton: int) -> bool:
    """Return whether the tmpfs is full."""
    room = os.fstatvfs(skeleton)
    return not room.f_ffree or not room.f_bfree


def become_nobody() -> None:
    """Become a user who owns nothing, without capabilities: for a process that has all it needs as descriptors."""
    with suppress(OSError):  # in a user namespace that does not have the id
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)  # another user has none
    _keep(())


def close_in(rights: Rights, programs: Sequence[bytes]) -> None:
    """Give up what only the beginning needs, and load the seccomp filter, if there are any."""
    _keep(rights.capabilities)
    if program := programs[rights.filter]:
        with suppress(OSError):
            _load(program)


def _load(program: bytes) -> None:
    try:
        # Before Linux 5.16 a filter would turn speculation off, which slows an interpreter down by a third.
        syscalls.load_filter(program, syscalls.SECCOMP_SPEC_ALLOW)
    except UnknownCall:
        syscalls.load_filter(program, 0)


def _keep(numbers: Iterable[int]) -> None:
    """Keep only these capabilities, as far as they are present. Raises OSError."""
    kept = capabilities.current()[1] & sum(1 << number for number in numbers)
    capabilities.become(kept, kept, 0)
