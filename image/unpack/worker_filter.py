"""The seccomp filters for unpacking workers, compiled with libseccomp in the daemon.

A worker that is root may do all but what unpacking never does. One without rights may do only what it needs: to read
and write what is open, or to make a tree in its tmpfs as well.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Iterable
from typing import Any

_log = logging.getLogger(__name__)

_CLONE_THREAD = 0x10000
_PR_SET_PDEATHSIG = 1
_UNKNOWN_SYSCALL = -1

# What unpacking never uses. The rest is allowed, because a file system or a library may need it in some version.
_REFUSED = """
socket socketpair connect bind listen accept accept4 sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg
fork vfork execve execveat kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo
pidfd_open pidfd_getfd pidfd_send_signal ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp
mount umount umount2 mount_setattr move_mount open_tree fsopen fsconfig fsmount fspick pivot_root chroot
setns unshare bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register
keyctl add_key request_key open_by_handle_at name_to_handle_at fanotify_init lookup_dcookie quotactl quotactl_fd
init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct syslog vhangup nfsservctl
settimeofday clock_settime clock_adjtime adjtimex stime sethostname setdomainname
iopl ioperm modify_ldt personality seccomp memfd_secret
setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid
setpriority ioprio_set sched_setscheduler sched_setparam sched_setattr sched_setaffinity migrate_pages move_pages
shmget shmat shmctl msgget msgsnd msgrcv msgctl semget semop semctl semtimedop mq_open
""".split()

# Open files, memory, threads and time: the interpreter, C libraries and the decompressors need no more.
_FILES = """
read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek _llseek close fsync fadvise64
fstat fstat64 newfstatat fstatat64 statx ftruncate ftruncate64 dup fcntl fcntl64
brk mmap mmap2 munmap mremap mprotect madvise
futex futex_time64 set_robust_list get_robust_list rseq set_tid_address membarrier sched_yield sched_getaffinity
getpid gettid getuid geteuid getgid getegid getuid32 geteuid32 getgid32 getegid32 getrandom uname sysinfo
rt_sigaction rt_sigprocmask rt_sigreturn sigreturn sigaltstack restart_syscall
clock_gettime clock_gettime64 clock_getres clock_getres_time64 clock_nanosleep clock_nanosleep_time64 nanosleep
gettimeofday time poll ppoll ppoll_time64 select _newselect pselect6 pselect6_time64
arch_prctl set_thread_area set_tls cacheflush riscv_flush_icache exit exit_group
""".split()

_TREE = """
open openat openat2 stat stat64 lstat lstat64 statfs statfs64 fstatfs fstatfs64
getdents getdents64 mkdir mkdirat mknod mknodat symlink symlinkat link linkat unlink unlinkat rmdir
readlink readlinkat chdir fchdir chmod fchmod fchmodat fchmodat2 utimensat utimensat_time64 futimesat utimes utime
""".split()


@functools.cache
def programs() -> tuple[bytes, bytes, bytes]:
    """Return the filters as classic BPF, arrays of struct sock_filter; b"" with a warning without libseccomp.

    For root's workers, for those in a tmpfs, and for those with descriptors only.
    """
    try:
        library: Any = __import__("pyseccomp")
        return _of_root(library), _of_nobody(library, (*_FILES, *_TREE)), _of_nobody(library, _FILES)
    except (ImportError, RuntimeError, OSError) as error:
        _log.warning("layers are unpacked without a seccomp filter: install libseccomp", extra={"error": error})
        return b"", b"", b""


def _of_nobody(library: Any, allowed: Iterable[str]) -> bytes:
    # To C libraries ENOSYS means an old kernel, which they can do without.
    rules = library.SyscallFilter(library.ERRNO(errno.ENOSYS))
    for name in allowed:
        if library.resolve_syscall(library.Arch.NATIVE, name) != _UNKNOWN_SYSCALL:
            rules.add_rule(library.ALLOW, name)
    flags = _clone_flags()
    rules.add_rule(library.ALLOW, "clone", library.Arg(flags, library.MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD))
    return _exported(rules)


def _of_root(library: Any) -> bytes:
    rules = library.SyscallFilter(library.ALLOW)
    refused = library.ERRNO(errno.EPERM)
    for name in _REFUSED:
        if library.resolve_syscall(library.Arch.NATIVE, name) != _UNKNOWN_SYSCALL:
            rules.add_rule(refused, name)
    # A filter cannot see the flags of clone3; after ENOSYS C libraries use clone, which is allowed for threads only.
    rules.add_rule(library.ERRNO(errno.ENOSYS), "clone3")
    rules.add_rule(refused, "clone", library.Arg(_clone_flags(), library.MASKED_EQ, _CLONE_THREAD, 0))
    rules.add_rule(refused, "prlimit64", library.Arg(0, library.NE, 0))  # for other processes
    rules.add_rule(refused, "prctl", library.Arg(0, library.EQ, _PR_SET_PDEATHSIG))  # it has to end with its parent
    return _exported(rules)


def _clone_flags() -> int:
    """Return which argument of clone(2) has the flags."""
    return 1 if os.uname().machine.startswith("s390") else 0


def _exported(rules: Any) -> bytes:
    with os.fdopen(os.memfd_create("seccomp", os.MFD_CLOEXEC), "w+b") as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
