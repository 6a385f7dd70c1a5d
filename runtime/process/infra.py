"""Runs the infra process: it holds a pod's namespaces, and reaps children as PID 1 of a shared PID namespace.

It must cost no more than a static pause program, and give containers no way to the host. Its root is an empty read-only
tmpfs and its uid is 65535. It has no capabilities and no descriptors, is not dumpable, and may make only the system
calls of its loop. The program is some hundred bytes of machine code in an ELF file in a memfd, so it needs no image and
no file on disk.

It dies with its parent until SIGUSR1 tells it that others know of it.

The loop, with the four signals blocked since before execve:

    prctl(PR_SET_DUMPABLE, 0)
    loop: signal = rt_sigtimedwait({SIGINT, SIGUSR1, SIGTERM, SIGCHLD})
          SIGTERM, SIGINT: exit_group(0)
          SIGUSR1: prctl(PR_SET_PDEATHSIG, 0)
          SIGCHLD: while wait4(-1, WNOHANG) > 0
"""

from __future__ import annotations

import fcntl
import os
import struct

from linux import syscalls
from linux.elf import executable, in_memory
from linux.tables import AUDIT_ARCHITECTURES
from runtime.errors import failing
from runtime.light import signal, socket
from runtime.namespaces import user as userns
from runtime.namespaces.sysctl import write_defaults, write_sysctls
from runtime.process.parent import die_with
from runtime.rootfs.tree import enter_empty_root
from runtime.seccomp.load import load_filter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final, NoReturn

INFRA_ID: Final = 65535
OUTLIVE: Final = signal.SIGUSR1  # tells the process not to die with its parent any more
# prctl, rt_sigtimedwait, wait4, exit_group, execveat
_ALLOWED_CALLS = {"x86_64": (157, 128, 61, 231, 322), "aarch64": (167, 137, 260, 94, 281)}
_CODE: Final[dict[str, bytes]] = {
    "x86_64": bytes.fromhex(
        "bf04000000 31f6 b89d000000 0f05"  # mov edi,4; xor esi,esi; mov eax,157; syscall
        "488d3d5b000000 31f6 31d2 41ba08000000 b880000000 0f05"  # loop: lea rdi,[set]; rsi=rdx=0; r10d=8; eax=128
        "83f80f 742b 83f802 7426 83f80a 742a 83f811 75d4"  # 15: quit; 2: quit; 10: outlive; not 17: loop
        "bfffffffff 31f6 ba01000000 4531d2 b83d000000 0f05"  # reap: edi=-1; esi=0; edx=WNOHANG; r10d=0; eax=61
        "85c0 7fe6 ebb8"  # > 0: reap; loop
        "31ff b8e7000000 0f05"  # quit: edi=0; eax=231
        "bf01000000 31f6 b89d000000 0f05 eb9f 90"  # outlive: edi=1; esi=0; eax=157; loop; padding
        "0242010000000000"  # set: 1<<1 | 1<<9 | 1<<14 | 1<<16
    ),
    "aarch64": bytes.fromhex(
        "800080d2 010080d2 e81480d2 010000d4"  # x0=4; x1=0; x8=167; svc
        "00040010 010080d2 020080d2 030180d2 281180d2 010000d4"  # loop: adr x0,set; x1=x2=0; x3=8; x8=137; svc
        "1f3c00f1 00020054 1f0800f1 c0010054"  # 15: quit; 2: quit
        "1f2800f1 e0010054 1f4400f1 61feff54"  # 10: outlive; not 17: loop
        "00008092 010080d2 220080d2 030080d2 882080d2 010000d4"  # reap: x0=-1; x1=0; x2=1; x3=0; x8=260; svc
        "1f0000f1 2cffff54 eaffff17"  # > 0: reap; loop
        "000080d2 c80b80d2 010000d4"  # quit: x0=0; x8=94; svc
        "200080d2 010080d2 e81480d2 010000d4 e2ffff17 1f2003d5"  # outlive: x0=1; x1=0; x8=167; svc; loop; padding
        "0242010000000000"  # set
    ),
}

# What precedes the loop where the signals are not blocked before execve: rt_sigprocmask(SIG_BLOCK, set).
_BLOCK: Final[dict[str, bytes]] = {
    "x86_64": bytes.fromhex(
        "eb08 0242010000000000"  # jump over the set
        "bf00000000 488d35ecffffff 31d2 41ba08000000 b80e000000 0f05"  # edi=0; lea rsi,[set]; edx=0; r10d=8; eax=14
    ),
    "aarch64": bytes.fromhex(
        "03000014 0242010000000000"  # jump over the set
        "000080d2 a1ffff10 020080d2 030180d2 e81080d2 010000d4"  # x0=0; adr x1,set; x2=0; x3=8; x8=135; svc
    ),
}


def program(machine: str | None = None) -> bytes:
    """Return the infra loop as a static ELF executable (elf(5)) for this or the named architecture."""
    machine = machine or os.uname().machine
    return executable(_CODE[machine], machine)


def pause_program(machine: str | None = None) -> bytes:
    """Return a static ELF executable of the loop for a container: another runtime blocks no signals before execve."""
    machine = machine or os.uname().machine
    return executable(_BLOCK[machine] + _CODE[machine], machine)


def filter_program(machine: str | None = None) -> bytes:
    """Return the seccomp filter (classic BPF): it allows the loop's five calls; any other kills the process."""
    machine = machine or os.uname().machine
    allowed = _ALLOWED_CALLS[machine]
    load, equal, ret = 0x20, 0x15, 0x06
    rules = [(load, 0, 0, 4), (equal, 1, 0, AUDIT_ARCHITECTURES[machine]), (ret, 0, 0, 0x80000000), (load, 0, 0, 0)]
    rules += [(equal, len(allowed) - i, 0, number) for i, number in enumerate(allowed)]
    rules += [(ret, 0, 0, 0x80000000), (ret, 0, 0, 0x7FFF0000)]
    return b"".join(struct.pack("<HBBI", *rule) for rule in rules)


def program_file() -> int:
    """Return a read-only descriptor of the program in memory, executable but not readable by others.

    A process that executes a file which it may not read is not dumpable.
    """
    return in_memory("crisp-infra", program(), 0o111)


def empty_mount_namespace() -> int:
    """Return a descriptor of a mount namespace that contains one empty read-only tmpfs and nothing else.

    Every infra process is in it, and a container's mount namespace is a copy of it: that is much cheaper than copying
    and unmounting all of the host's mounts. Forks a short-lived child; single-threaded callers only. Raises
    RuntimeCoreError.
    """
    return userns.hold(("make", "empty mount namespace"), ("mount",), 0, enter_empty_root)["mount"]


def bring_loopback_up() -> None:
    """Set IFF_UP on `lo` of the caller's network namespace (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        answer = fcntl.ioctl(probe, 0x8913, struct.pack("16sH14x", b"lo", 0))  # SIOCGIFFLAGS
        (flags,) = struct.unpack_from("H", answer, 16)
        fcntl.ioctl(probe, 0x8914, struct.pack("16sH14x", b"lo", flags | 1))  # SIOCSIFFLAGS


def infra_main(
    *,
    parent: int,
    program_fd: int,
    mount_namespace: int,
    title: str,
    hostname: str,
    new_network: bool,
    new_uts: bool,
    last_pid: int,
    sysctls: Mapping[str, str],
    default_sysctls: Mapping[str, str],
    uid: int,
    gid: int,
) -> NoReturn:
    """Set up the namespaces that the caller was cloned into, then execute the infra program. Raises on failure.

    Until `OUTLIVE` the program dies with its parent, whose pidfd `parent` is. `mount_namespace` is -1 if the caller is
    in the empty one already.
    """
    if new_uts and hostname:
        with failing("set hostname", hostname):
            socket.sethostname(hostname)
    if new_network:
        with failing("set up", "lo"):
            bring_loopback_up()
    write_sysctls(sysctls)
    write_defaults(default_sysctls)
    if last_pid:  # the file is of the writer's PID namespace, in which nobody else is yet
        write_sysctls({"kernel.ns_last_pid": str(last_pid)})
    if mount_namespace >= 0:
        with failing("enter", "empty root"):
            syscalls.setns(mount_namespace, syscalls.CLONE_NEWNS)
    with failing("drop privileges of", "infra process"):
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        die_with(parent)  # after the change of ids, which clears it: without the shim nobody would end this process
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, OUTLIVE})
        for fd in (0, 1, 2):
            os.close(fd)
        syscalls.close_on_exec_from(0)
        load_filter(filter_program(), 0)
    os.execve(program_fd, [title], {})
