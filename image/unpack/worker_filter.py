"""The seccomp filter for unpacking workers, compiled with libseccomp in the daemon."""

from __future__ import annotations

import errno
import functools
import logging
import os
from typing import Any

_log = logging.getLogger(__name__)

_CLONE_THREAD = 0x10000
_PR_SET_PDEATHSIG = 1
_UNKNOWN_SYSCALL = -1

# What unpacking never uses. The rest is allowed, because the interpreter or a library may need it in some version.
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


@functools.cache
def program() -> bytes:
    """Return the filter as classic BPF, an array of struct sock_filter; b"" with a warning without libseccomp."""
    try:
        library: Any = __import__("pyseccomp")
        return _compiled(library)
    except (ImportError, RuntimeError, OSError) as error:
        _log.warning("layers are unpacked without a seccomp filter: install libseccomp", extra={"error": error})
        return b""


def _compiled(library: Any) -> bytes:
    rules = library.SyscallFilter(library.ALLOW)
    refused = library.ERRNO(errno.EPERM)
    for name in _REFUSED:
        if library.resolve_syscall(library.Arch.NATIVE, name) != _UNKNOWN_SYSCALL:
            rules.add_rule(refused, name)
    # A filter cannot see the flags of clone3; after ENOSYS C libraries use clone, which is allowed for threads only.
    rules.add_rule(library.ERRNO(errno.ENOSYS), "clone3")
    flags = 1 if os.uname().machine.startswith("s390") else 0
    rules.add_rule(refused, "clone", library.Arg(flags, library.MASKED_EQ, _CLONE_THREAD, 0))
    rules.add_rule(refused, "prlimit64", library.Arg(0, library.NE, 0))  # for other processes
    rules.add_rule(refused, "prctl", library.Arg(0, library.EQ, _PR_SET_PDEATHSIG))  # it has to end with its parent
    with os.fdopen(os.memfd_create("seccomp", os.MFD_CLOEXEC), "w+b") as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
