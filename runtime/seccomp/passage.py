"""Makes the system calls of a process that has the container's filter but does not run its program yet.

Loading a filter without no_new_privs needs CAP_SYS_ADMIN, which no process visible to a container may have. So the
filter is loaded before the clone into the container's PID namespace (`runtime.process.bear`), but it was written for
the program and may forbid that clone. Therefore a few instructions precede the filter. They allow the calls listed here
if their sixth argument, which none of them uses, is a secret random number that is gone after the execve. Without such
a filter the number is 0, and the calls are ordinary ones.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

from linux import syscalls
from linux.tables import AUDIT_ARCHITECTURES
from runtime.light import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_NAMES: Final = (
    "clone", "sendmsg", "exit_group", "capset", "setsid", "ioctl", "prlimit64", "sched_setattr",
    "openat", "openat2", "readlinkat", "fstatfs", "statx", "read", "write", "close", "faccessat",
)  # fmt: skip
_NUMBERS: Final[dict[str, tuple[int, ...]]] = {
    "x86_64": (56, 46, 231, 126, 112, 16, 302, 314, 257, 437, 267, 138, 332, 0, 1, 3, 269),
    "aarch64": (220, 211, 94, 91, 157, 29, 261, 274, 56, 437, 78, 44, 291, 63, 64, 57, 48),
}
_MACHINE: Final = os.uname().machine  # read once: a container's personality(2) can change what uname says
_CLONE_FLAGS: Final = syscalls.CLONE_PARENT | syscalls.CLONE_PIDFD
_ARGUMENTS: Final = 5  # at most, of the calls above
_LOAD, _EQUAL, _RETURN, _ALLOW = 0x20, 0x15, 0x06, 0x7FFF0000  # classic BPF
_NUMBER_AT, _ARCH_AT, _SIXTH_AT = 0, 4, 56  # in struct seccomp_data
_SOL_SOCKET, _SCM_RIGHTS = 1, 1


@dataclass(frozen=True, slots=True)
class Passage:
    """The calls, with `word` as their sixth argument. They raise OSError."""

    word: int = 0

    @classmethod
    def make(cls) -> Passage:
        return cls(int.from_bytes(os.urandom(8), sys.byteorder) or 1)

    def before(self, program: bytes) -> bytes:
        """Return the filter with the instructions that allow these calls in front of it."""
        numbers = _NUMBERS[_MACHINE]
        last = len(numbers) - 1
        # Load arguments for these calls only: the kernel skips the filter for calls that it allows by number alone
        # (SECCOMP_CACHE, Linux 5.11).
        rules = [
            (_LOAD, 0, 0, _ARCH_AT),
            (_EQUAL, 0, len(numbers) + 6, AUDIT_ARCHITECTURES[_MACHINE]),
            (_LOAD, 0, 0, _NUMBER_AT),
            *((_EQUAL, last - index, 5 * (index == last), number) for index, number in enumerate(numbers)),
            (_LOAD, 0, 0, _SIXTH_AT),
            (_EQUAL, 0, 3, self.word & 0xFFFFFFFF),
            (_LOAD, 0, 0, _SIXTH_AT + 4),
            (_EQUAL, 0, 1, self.word >> 32),
            (_RETURN, 0, 0, _ALLOW),
        ]
        return b"".join(struct.pack("=HBBI", *rule) for rule in rules) + program

    def call(self, name: str, *arguments: Any, about: str = "") -> int:
        number = _NUMBERS[_MACHINE][_NAMES.index(name)]
        wide = [_argument(value) for value in arguments]
        wide += [ctypes.c_long(0)] * (_ARGUMENTS - len(wide))
        return syscalls.locked_syscall(number, *wide, ctypes.c_ulong(self.word), about=about or name)

    def clone(self) -> tuple[int, int]:
        """Clone a child of the caller's parent into the PID namespace set for children. Returns as `syscalls.clone`."""
        pidfd = ctypes.c_int(-1)
        pid = self.call("clone", _CLONE_FLAGS, 0, ctypes.byref(pidfd))
        return (pid, pidfd.value) if pid else (0, -1)

    def send(self, channel: int, text: bytes, descriptor: int) -> None:
        """Send one message with one descriptor (unix(7))."""
        control = ctypes.create_string_buffer(struct.pack("@Niiii", 20, _SOL_SOCKET, _SCM_RIGHTS, descriptor, 0), 24)
        content = ctypes.create_string_buffer(text, len(text))
        vector = ctypes.create_string_buffer(struct.pack("@PN", ctypes.addressof(content), len(text)))
        header = struct.pack("@PIPNPNi4x", 0, 0, ctypes.addressof(vector), 1, ctypes.addressof(control), 24, 0)
        self.call("sendmsg", channel, ctypes.create_string_buffer(header, len(header)), 0)


def _argument(value: Any) -> Any:
    if isinstance(value, int):
        return ctypes.c_long(value)
    return ctypes.byref(value) if isinstance(value, ctypes.Structure) else value
