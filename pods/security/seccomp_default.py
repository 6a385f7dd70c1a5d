"""The RuntimeDefault seccomp profile: the system calls that a container without a profile of its own may make.

It is an allow list: any other call fails with EPERM, whether the kernel has it or not. Left out are calls that change
the host or reach past namespaces (modules, clocks, mounts, keyrings, kexec), calls that few programs need and many
kernel exploits used (io_uring, userfaultfd), and calls that only make sense with a capability; a container with that
capability may make them. The effect is that of the profile which Docker and containerd share, so that images tested
there behave the same here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from linux.tables import NAMESPACE_FLAGS

_ENOSYS: Final = 38
_EPERM: Final = 1
_AF_VSOCK: Final = 40

_FILES: Final = """
access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync
fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64
futimesat getcwd getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
ioctl lchown lchown32 lgetxattr link linkat listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat
lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2
pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr removexattrat rename renameat renameat2
rmdir sendfile sendfile64 setxattr setxattrat splice stat stat64 statfs statfs64 statx symlink symlinkat sync
sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice
write writev
"""

_WAITING: Final = """
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2
io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit _newselect poll ppoll
ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4 timerfd_create timerfd_gettime timerfd_gettime64
timerfd_settime timerfd_settime64
"""

_SOCKETS: Final = """
accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 recvmsg
send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair
"""

_MEMORY: Final = """
brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2
mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease
remap_file_pages
"""

_PROCESSES: Final = """
execve execveat exit exit_group fork getpgid getpgrp getpid getppid getpriority getrlimit getrusage getsid gettid
get_robust_list get_thread_area ioprio_get ioprio_set kill pause pidfd_open pidfd_send_signal prctl prlimit64
restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam
sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield setpgid setpriority setrlimit setsid
set_robust_list set_thread_area set_tid_address sigaltstack sigpending sigprocmask sigreturn sigsuspend tgkill tkill
ugetrlimit vfork wait4 waitid waitpid
"""

_IDENTITY: Final = """
capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 getresuid
getresuid32 getuid getuid32 landlock_add_rule landlock_create_ruleset landlock_restrict_self lsm_get_self_attr
lsm_list_modules lsm_set_self_attr seccomp setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32
setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32
"""

_TIME: Final = """
adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create timer_delete
timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 times
"""

_SYNCHRONISATION: Final = """
futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake ipc mq_getsetattr mq_notify mq_open mq_timedreceive
mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop
semtimedop semtimedop_time64 shmat shmctl shmdt shmget
"""

_SYSTEM: Final = "getcpu getrandom sysinfo uname"

_ALWAYS: Final = (
    "".join((_FILES, _WAITING, _SOCKETS, _MEMORY, _PROCESSES, _IDENTITY, _TIME, _SYNCHRONISATION, _SYSTEM)).split()
)

# Safe since ptrace can no longer be used to get around the filter itself.
_SINCE_LINUX_4_8: Final = ["process_vm_readv", "process_vm_writev", "ptrace"]

_BY_ARCHITECTURE: Final[Mapping[str, str]] = {
    "amd64": "arch_prctl modify_ldt",
    "386": "modify_ldt",
    "arm": "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
    "arm64": "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
    "ppc64le": "swapcontext sync_file_range2",
    "riscv64": "riscv_flush_icache riscv_hwprobe",
    "s390x": "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
}

_BY_CAPABILITY: Final[Mapping[str, str]] = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick listmount lookup_dcookie mount mount_setattr
        move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns statmount syslog
        umount umount2 unshare
        """,
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
}

# linux/personality.h: Linux and 32-bit Linux, each also with UNAME26, and the query of the present one.
_PERSONALITIES: Final = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

# linux/sched.h: NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET and NEWNS.
_NEW_NAMESPACES: Final = sum(flag for kind, flag in NAMESPACE_FLAGS.items() if kind != "time")  # not for clone(2)

ARCHITECTURES: Final[Mapping[str, tuple[str, ...]]] = {
    "amd64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "386": ("SCMP_ARCH_X86",),
    "arm": ("SCMP_ARCH_ARM",),
    "arm64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "loong64": ("SCMP_ARCH_LOONGARCH64",),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
    "riscv64": ("SCMP_ARCH_RISCV64",),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
}
"""The ABIs that a kernel of each architecture serves, its own first; a filter must cover all of them."""


def default_profile(capabilities: frozenset[str], architecture: str, kernel: tuple[int, int]) -> dict[str, Any]:
    """Return the profile as `linux.seccomp`, for a container with the bounding set `capabilities`.

    `architecture` is Go's name. The compiler skips names that the installed libseccomp does not know.
    """
    names = [*_ALWAYS, *_BY_ARCHITECTURE.get(architecture, "").split()]
    if kernel >= (4, 8):
        names += _SINCE_LINUX_4_8
    for capability in sorted(capabilities):
        names += _BY_CAPABILITY.get(capability, "").split()
    rules = [_allow(*dict.fromkeys(names)), _allow("socket", _when(0, "SCMP_CMP_NE", _AF_VSOCK))]
    rules += [_allow("personality", _when(0, "SCMP_CMP_EQ", persona)) for persona in _PERSONALITIES]
    if "CAP_SYS_ADMIN" not in capabilities:
        # On s390 the first two arguments of clone(2) are swapped.
        flags = 1 if architecture == "s390x" else 0
        rules.append(_allow("clone", _when(flags, "SCMP_CMP_MASKED_EQ", _NEW_NAMESPACES, 0)))
        # clone3 has its flags in memory, where a filter cannot see them; on ENOSYS C libraries fall back to clone.
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "architectures": list(ARCHITECTURES.get(architecture, ())),
        "syscalls": rules,
    }


def _allow(*what: str | dict[str, Any]) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": [name for name in what if isinstance(name, str)], "action": "SCMP_ACT_ALLOW"}
    if conditions := [condition for condition in what if isinstance(condition, dict)]:
        rule["args"] = conditions
    return rule


def _when(index: int, op: str, value: int, value_two: int = 0) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": value_two, "op": op}
