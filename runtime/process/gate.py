"""Implements the gate: a finished container's process that waits for one byte and then executes the program.

Everything else is done by then, including credentials and filters. The interpreter executes some hundred bytes of
machine code in a memfd. So a container that was created but not started takes only a few pages, and a program that
leads back to its caller ("#!/proc/self/exe", CVE-2019-5736) finds the memfd instead of the host's Python.

    fcntl(wait, F_SETFD, FD_CLOEXEC); fcntl(report, F_SETFD, FD_CLOEXEC)
    read(wait, 1 byte)
    execve(argv[0], argv + 1, envp)
    write(report, the error's number as a C int); exit_group(1)     # reports.NotExecuted
"""

from __future__ import annotations

import os
import struct

from linux.elf import executable, in_memory
from runtime.errors import RuntimeCoreError
from runtime.light import dataclass
from runtime.spec.values import Process, Seccomp
from runtime.wire.reports import Failed, NotExecuted, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Final, NoReturn

_CODE: Final[dict[str, bytes]] = {
    "x86_64": bytes.fromhex(
        "4c8d2581000000 4531ed"  # lea r12,[descriptors]; r13=0
        "438b3cac be02000000 ba01000000 b848000000 0f05 41ffc5 4183fd02 72e2"  # mark: fcntl(r12[r13++], 2, 1), twice
        "418b3c24 488d7424f8 ba01000000 31c0 0f05"  # wait: read(r12[0], rsp-8, 1)
        "4883f8fc 74e8 4883f801 751a"  # EINTR: wait; not 1: fail
        "488b7c2408 488d742410 488b0424 488d54c410 b83b000000 0f05"  # execve(argv[0], argv+1, envp)
        "f7d8 894424f8 418b7c2404 488d7424f8 ba04000000 b801000000 0f05"  # fail: write(r12[1], -eax, 4)
        "bf01000000 b8e7000000 0f05"  # exit_group(1)
    ),
    "aarch64": bytes.fromhex(
        "73040010 140080d2"  # adr x19,descriptors; x20=0
        "607a74b8 410080d2 220080d2 280380d2 010000d4 94060091 9f0a00f1 23ffff54"  # mark: fcntl(x19[x20++], 2, 1)
        "600240b9 e14300d1 220080d2 e80780d2 010000d4"  # wait: read(x19[0], sp-16, 1)
        "1f1000b1 40ffff54 1f0400f1 e1000054"  # EINTR: wait; not 1: fail
        "e00740f9 e1430091 e30340f9 220c038b a81b80d2 010000d4"  # execve(argv[0], argv+1, envp)
        "e003004b e0031fb8 600640b9 e14300d1 820080d2 080880d2 010000d4"  # fail: write(x19[1], -w0, 4)
        "200080d2 c80b80d2 010000d4"  # exit_group(1)
    ),
}
_NEEDED_CALLS: Final = ("execve", "execveat", "exit_group", "fcntl", "read", "write")


@dataclass(frozen=True, slots=True)
class Gate:
    """The gate's descriptors: a byte from `wait` opens it, `report` gets a `reports.NotExecuted` if execve fails.

    Both are closed when the program runs. `program` comes from `waiting_program`; -1 makes the caller itself wait.
    """

    wait: int
    report: int
    program: int = -1
    on_open: Callable[[], None] | None = None  # if `program` is -1: the caller runs it between the byte and the execve

    def pass_through(self, path: str, args: tuple[str, ...], environment: Mapping[str, str], channel: int) -> NoReturn:
        """Wait, then execute `path`. `channel` is closed when only the wait is left."""
        if self.program >= 0:
            try:
                os.set_inheritable(self.wait, True)
                os.set_inheritable(self.report, True)
                os.execve(self.program, [path, *args], environment)
            except OSError:  # forbidden by vm.memfd_noexec=2 or by a security module
                os.set_inheritable(self.wait, False)
                os.set_inheritable(self.report, False)
        if channel != self.report:
            os.close(channel)
        try:
            os.read(self.wait, 1)
            if self.on_open is not None:
                self.on_open()
            os.execve(path, args, environment)
        except OSError as error:
            os.write(self.report, encode(NotExecuted(error.errno or 0)))
        except RuntimeCoreError as error:
            os.write(self.report, encode(Failed(error)))
        os._exit(1)


def waiting_program(wait: int, report: int, process: Process, filter: Seccomp | None) -> int:
    """Return a descriptor of the machine code for these two descriptors, or -1 if it cannot be used.

    It cannot be used on unsupported architectures, under a filter that refuses one of its calls, or if a security label
    applies to the next execve, which must then be that of the container's program.
    """
    code = _CODE.get(os.uname().machine)
    if code is None or process.apparmor_profile or process.selinux_label:
        return -1
    if filter is not None and not all(_permits(filter, call) for call in _NEEDED_CALLS):
        return -1
    return in_memory("crisp-gate", executable(code + struct.pack("=ii", wait, report), os.uname().machine), 0o555)


def _permits(filter: Seccomp, call: str) -> bool:
    actions = [(rule.action, bool(rule.args)) for rule in filter.syscalls if call in rule.names]
    if not actions:
        return filter.default_action == "SCMP_ACT_ALLOW"
    return all(action == "SCMP_ACT_ALLOW" for action, _conditional in actions) and (
        filter.default_action == "SCMP_ACT_ALLOW" or not all(conditional for _action, conditional in actions)
    )
