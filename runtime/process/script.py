"""A list of system calls, and the small program that makes them in the place of a forked interpreter.

Whoever forks a Python process to become a container's program pays for a copy of its page tables, for each page that
the copy then touches, and for all the Python on the way. Here the way is a list, made beforehand: two hundred bytes of
machine code in a memfd are executed by posix_spawn(3), receive the list on descriptor 3, and work it off:

    memory = mmap(BASE, SIZE); read(3, memory, SIZE)
    loop: result = call number of the entry with its six arguments, as they stand there
          number is LOOK: result = *first & second ^ third
          a result above 0 is stored where the entry says; the next entry is one of three: for 0, for what is above, and
          for an error that the entry has allowed
    another error: leave number and entry in the header, and go on with what is there to be done then

The list comes to lie where it was made for, so that it is addresses and plain numbers: an entry has another one's
result because that stored it into the entry's argument. A child that the list clones goes on in a copy of it. Nothing
that the caller knows but did not write into it is in that memory.
"""

from __future__ import annotations

import os
import struct

from linux import syscalls
from linux.elf import executable, in_memory
from runtime.light import dataclass, signal
from runtime.wire.reports import Undone, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Final

BASE: Final = 0x10000000
CHANNEL: Final = 3  # where the list comes in, and reports go out
LOOK: Final = -1
EVERY_ERROR: Final = range(128)
_CODE: Final[dict[str, bytes]] = {
    "x86_64": bytes.fromhex(
        "bf00000010 be00001000 ba03000000 41ba32000000 6aff4158 4531c9 6a0958 0f05 4889c3"  # rbx = mmap(BASE, 1 MiB)
        "6a035f 4889de ba00001000 31c0 0f05 4885c0 0f8e82000000"  # read(3, rbx, 1 MiB); nothing: quit
        "4c8b6318"  # r12 = rbx[24]
        "498b0424 498b7c2408 498b742410 498b542418 4d8b542420 4d8b442428 4d8b4c2430"  # loop: number and arguments
        "4885c0 7827 0f05 483d00f0ffff 7728"  # below 0: look; syscall; from -4095 on: error
        "4885c0 7411 498b4c2438 e303 488901 4d8b642448 ebb9"  # done: 0: zero; store; r12 = r12[72]; loop
        "4d8b642440 ebb2"  # zero: r12 = r12[64]; loop
        "488b07 4821f0 4831d0 ebd8"  # look: rax = *rdi & rsi ^ rdx; done
        "48f7d8 83f87f 770f 490fa3442458 7307 4d8b642450 eb90"  # error: in the mask at r12[88]: r12 = r12[80]; loop
        "48894308 4c896310 4c8b6320 eb82"  # fail: rbx[8], rbx[16] = rax, r12; r12 = rbx[32]; loop
        "6a015f b8e7000000 0f05"  # quit: exit_group(1)
    ),
    "aarch64": bytes.fromhex(
        "0000a2d2 0102a0d2 620080d2 430680d2 04008092 050080d2 c81b80d2 010000d4 f30300aa"  # x19 = mmap(BASE, 1 MiB)
        "600080d2 e10313aa 0202a0d2 e80780d2 010000d4 1f0000f1 6d040054"  # read(3, x19, 1 MiB); nothing: quit
        "740e40f9"  # x20 = x19[24]
        "880240f9 808640a9 828e41a9 849642a9"  # loop: number and arguments
        "8801f8b7 010000d4 1ffc3fb1 a2010054"  # below 0: look; svc; from -4095 on: error
        "c00000b4 811e40f9 410000b4 200000f9 942640f9 f3ffff17"  # done: 0: zero; store; x20 = x20[72]; loop
        "942240f9 f1ffff17"  # zero: x20 = x20[64]; loop
        "000040f9 0000018a 000002ca f5ffff17"  # look: x0 = *x0 & x1 ^ x2; done
        "e00300cb 1ffc01f1 08010054 01fc46d3 810e018b 212c40f9 2124c09a 61000036 942a40f9 e3ffff17"  # error
        "60d200a9 741240f9 e0ffff17"  # fail: x19[8], x19[16] = x0, x20; x20 = x19[32]; loop
        "200080d2 c80b80d2 010000d4"  # quit: exit_group(1)
    ),
}
_NAMES: Final = (
    "read", "write", "close", "openat", "statx", "dup3", "fchown", "chdir", "getcwd", "prctl", "setgroups", "setresgid",
    "setresuid", "umask", "capset", "pipe2", "seccomp", "clone", "clone3", "sendmsg", "exit_group", "setsid", "setns",
    "keyctl", "sched_setaffinity", "faccessat", "execve", "fcntl", "prlimit64", "close_range",
    "rt_sigaction",
)  # fmt: skip
_NUMBERS: Final[dict[str, tuple[int, ...]]] = {
    "x86_64": (0, 1, 3, 257, 332, 292, 93, 80, 79, 157, 116, 119, 117, 95, 126, 293, 317, 56, 435, 46, 231, 112, 308,
               250, 203, 269, 59, 72, 302, 436, 13),
    "aarch64": (63, 64, 57, 56, 291, 24, 55, 49, 17, 167, 159, 149, 147, 166, 91, 59, 277, 220, 435, 211, 94, 157, 268,
                219, 122, 48, 221, 25, 261, 436, 134),
}  # fmt: skip
_MACHINE: Final = os.uname().machine  # not asked for later: a personality of a container's can make it another one
_HEADER: Final = 40
_ENTRY: Final = struct.Struct("=13Q")
_WORD: Final = struct.Struct("=Q")
_ARGUMENTS_AT, _STORE_AT, _ZERO_AT, _POSITIVE_AT, _ERROR_AT = 8, 56, 64, 72, 80
_ALL_BITS: Final = 2**64 - 1
# What the interpreter ignores, and what shims do.
_IGNORED: Final = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_MOST: Final = 160 << 10  # bytes of a list: a packet of that size goes through a socket with the usual buffers


@dataclass(frozen=True, slots=True)
class Entry:
    """Where in the list one system call is. As an argument of a later one: its result."""

    at: int

    @property
    def zero(self) -> int:
        """The way on for a result of 0."""
        return self.at + _ZERO_AT

    @property
    def positive(self) -> int:
        return self.at + _POSITIVE_AT

    @property
    def error(self) -> int:
        """The way on for the errors that are allowed."""
        return self.at + _ERROR_AT


class Script:
    """A list in the making. Each entry follows the one before, unless its ways are taken (`take`) and put elsewhere."""

    def __init__(self) -> None:
        self.image = bytearray(_HEADER)
        self.names: dict[int, object] = {}  # of each entry's address: what it does, for whoever reads a failure
        self.passing: list[int] | None = None  # where the sixth arguments of later entries are noted, if they are
        self._ways: list[int] = [24]

    def data(self, content: bytes) -> int:
        """The address of a copy of `content`."""
        image = self.image
        image += bytes(-len(image) % 8)
        address = BASE + len(image)
        image += content
        return address

    def text(self, content: str | bytes) -> int:
        return self.data((os.fsencode(content) if isinstance(content, str) else content) + b"\0")

    def room(self, size: int) -> int:
        return self.data(bytes(size))

    def call(
        self, name: str, *arguments: int | Entry, about: object, allow: Collection[int] = (), store: int = 0
    ) -> Entry:
        """One system call. `allow`ed errors go on as success does; `store` is where a result above 0 is written."""
        return self._append(_NUMBERS[_MACHINE][_NAMES.index(name)], arguments, about, allow, store)

    def look(self, address: int, mask: int = _ALL_BITS, expected: int = 0, *, store: int = 0) -> Entry:
        """Compare the eight bytes at an address: 0 where what the mask leaves of them is as expected."""
        return self._append(LOOK, (address, mask, expected), None, (), store)

    def require(self, address: int, mask: int, expected: int, *, about: object, unlike: bool = False) -> None:
        """Fail with EBADF, and what this is about, where it is not as expected (or, `unlike`, where it is)."""
        look = self.look(address, mask, expected)
        right = self.take(look.positive if unlike else look.zero)
        self.fail(about)
        self.put(right)

    def fail(self, about: object) -> None:
        """The way ends here."""
        self.call("close", _ALL_BITS, about=about)
        self.end()

    def take(self, way: int) -> int:
        """Have that way not lead to the next entry."""
        self._ways.remove(way)
        return way

    def put(self, *ways: int) -> None:
        """Have these ways lead to the next entry."""
        self._ways += ways

    def end(self) -> None:
        """Nothing follows the last entry; ways that are put from now on lead to the next."""
        self._ways = []

    def on_failure(self) -> None:
        """What follows is what is to be done after an error that is not allowed."""
        self._ways = [32]

    def open_ways(self) -> list[int]:
        ways, self._ways = self._ways, []
        return ways

    def _append(
        self, number: int, arguments: Sequence[int | Entry], about: object, allow: Collection[int], store: int
    ) -> Entry:
        image = self.image
        image += bytes(-len(image) % 8)
        at = len(image)
        values = [0] * 6
        for index, argument in enumerate(arguments):
            if isinstance(argument, Entry):
                _WORD.pack_into(image, argument.at + _STORE_AT, BASE + at + _ARGUMENTS_AT + 8 * index)
            else:
                values[index] = argument & _ALL_BITS
        mask = sum(1 << error for error in allow)
        image += _ENTRY.pack(number & _ALL_BITS, *values, store, 0, 0, 0, mask & _ALL_BITS, mask >> 64)
        for way in self._ways:
            _WORD.pack_into(image, way, BASE + at)
        entry = Entry(at)
        self._ways = [entry.zero, entry.positive, *([entry.error] if mask else [])]
        if self.passing is not None and number != LOOK:
            self.passing.append(at + _ARGUMENTS_AT + 40)
        if about is not None:
            self.names[BASE + at] = about
        return entry

    def copy(self) -> Script:
        """Another one to go on with, whose names are new."""
        other = Script()
        other.image = bytearray(self.image)
        other.passing = None if self.passing is None else list(self.passing)
        other._ways = list(self._ways)
        return other

    def finished(self) -> bytearray:
        """The list, in the caller's hands."""
        empty = encode(Undone(0, 0))
        self.image[: len(empty)] = empty
        return self.image


class Runner:
    """The program, and what it runs as."""

    def __init__(self) -> None:
        code = _CODE.get(_MACHINE) if syscalls.has_close_range() else None
        self.program = -1 if code is None else in_memory("crisp-script", executable(code, _MACHINE), 0o500)

    @property
    def can_run(self) -> bool:
        """Whether there is a program for this machine, and the kernel has what lists are made of (Linux 5.9)."""
        return self.program >= 0

    def spawn(self, descriptors: Sequence[int]) -> tuple[int, int]:
        """Have it begin with these as descriptors 0, 1, 2 and so on, and nothing else of the caller's.

        Signals have no handlers then, and none is blocked. Single-threaded callers only. Returns its pid and a pidfd.
        Raises OSError.
        """
        aside: list[int] = []
        try:
            actions = []
            for target, source in enumerate(descriptors):
                if target != source < len(descriptors):  # another's place
                    aside.append(os.dup(source))
                    while aside[-1] < len(descriptors):
                        aside.append(os.dup(source))
                    source = aside[-1]
                actions.append((os.POSIX_SPAWN_DUP2, source, target))
            pid = os.posix_spawn(
                f"/proc/self/fd/{self.program}", ("crisp-exec",), {},
                file_actions=actions, setsigmask=(), setsigdef=_IGNORED,
            )  # fmt: skip
        finally:
            for descriptor in aside:
                os.close(descriptor)
        try:
            return pid, os.pidfd_open(pid)
        except OSError:
            end(pid)
            raise


def end(pid: int, pidfd: int = -1) -> None:
    """Kill a child that has no list yet, and reap it."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if pidfd >= 0:
        os.close(pidfd)


def fits(image: bytearray) -> bool:
    """Whether a list is not too long to be sent."""
    return len(image) <= _MOST
