"""Makes a list of system calls, and runs it with a small program instead of a forked interpreter.

A fork of a Python process copies its page tables and the pages that the child touches, and then the child runs Python.
Here the caller writes the list beforehand. posix_spawn(3) executes 270 bytes of machine code from a memfd. The
code receives the list on descriptor 3 and makes the calls:

    memory = mmap(BASE, SIZE); read(3, memory, SIZE)
    loop: result = the entry's system call with its six arguments
          if the number is LOOK: result = *first & second ^ third
          if it is CUT: copy the word that begins at first, or after blanks there, to second; result = its length
          store a result above 0 where the entry says; go on with one of three entries: for 0, for a result above 0, or
          for an error that the entry allows
          an allowed error: a filter's errno above 127 is allowed with 127
    any other error: store errno and entry in the header, and go on with the entries for failures

The program maps the list at BASE, so entries contain absolute addresses. A result becomes a later call's argument
because it is stored into that entry. A child that the list clones continues in a copy of the list. The memory contains
the list and nothing else of the caller's.
"""

from __future__ import annotations

import os
import struct

from linux import syscalls
from linux.elf import executable, in_memory
from runtime.light import signal, socket
from runtime.wire.reports import Undone, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final, Protocol

    from runtime.errors import RuntimeCoreError

    class Explanation(Protocol):
        """What an entry does, if it is more than an operation and its object."""

        def error(self, number: int, facts: bytes) -> RuntimeCoreError: ...

    About = tuple[str, str] | Explanation

BASE: Final = 0x10000000
CHANNEL: Final = 3  # where the list comes in, and reports go out
LOOK: Final = -1
CUT: Final = -2
EVERY_ERROR: Final = tuple(range(128))
_CODE: Final[dict[str, bytes]] = {
    "x86_64": bytes.fromhex(
        "bf00000010 be00001000 ba03000000 41ba32000000 6aff4158 4531c9 6a0958 0f05 4889c3"  # rbx = mmap(BASE, 1 MiB)
        "6a035f 4889de ba00001000 31c0 0f05 4885c0 0f8ec7000000"  # read(3, rbx, 1 MiB); nothing: quit
        "4c8b6318"  # r12 = rbx[24]
        "498b0424 498b7c2408 498b742410 498b542418 4d8b542420 4d8b442428 4d8b4c2430"  # loop: number and arguments
        "4885c0 7827 0f05 483d00f0ffff 772c"  # below 0: look; syscall; from -4095 on: error
        "4885c0 7411 498b4c2438 e303 488901 4d8b642448 ebb9"  # done: 0: zero; store; r12 = r12[72]; loop
        "4d8b642440 ebb2"  # zero: r12 = r12[64]; loop
        "a801 7438 488b07 4821f0 4831d0 ebd4"  # look: even: cut; rax = *rdi & rsi ^ rdx; done
        "48f7d8 b97f000000 39c8 0f42c8 490fa34c2458 7307"  # error: rcx = 127 at most; not in the mask at r12[88]: fail
        "4d8b642450 eb87"  # r12 = r12[80]; loop
        "48894308 4c896310 4c8b6320 e976ffffff"  # fail: rbx[8], rbx[16] = rax, r12; r12 = rbx[32]; loop
        "4889f2 8a07 48ffc7 3c20 74f7 3c09 74f3"  # cut: rdx = rsi; do al = *rdi++ while it is a space or a tab
        "3c20 770e 7418 3c0a 7708 3c09 7310 84c0 740c"  # copy: at a space, line feed, tab or null: copied
        "8806 48ffc6 8a07 48ffc7 ebe2"  # *rsi++ = al; al = *rdi++; copy
        "4889f0 4829d0 e96effffff"  # rax = rsi - rdx; done
        "6a015f b8e7000000 0f05"  # quit: exit_group(1)
    ),
    "aarch64": bytes.fromhex(
        "0000a2d2 0102a0d2 620080d2 430680d2 04008092 050080d2 c81b80d2 010000d4 f30300aa"  # x19 = mmap(BASE, 1 MiB)
        "600080d2 e10313aa 0202a0d2 e80780d2 010000d4 1f0000f1 0d070054"  # read(3, x19, 1 MiB); nothing: quit
        "740e40f9"  # x20 = x19[24]
        "880240f9 808640a9 828e41a9 849642a9"  # loop: number and arguments
        "8801f8b7 010000d4 1ffc3fb1 c2010054"  # below 0: look; svc; from -4095 on: error
        "c00000b4 811e40f9 410000b4 200000f9 942640f9 f3ffff17"  # done: 0: zero; store; x20 = x20[72]; loop
        "942240f9 f1ffff17"  # zero: x20 = x20[64]; loop
        "68020036 000040f9 0000018a 000002ca f4ffff17"  # look: even: cut; x0 = *x0 & x1 ^ x2; done
        "e00300cb e20f80d2 1f0002eb 0230829a 41fc46d3 810e018b 212c40f9 2124c29a 61000036 942a40f9 e1ffff17"  # error
        "60d200a9 741240f9 deffff17"  # fail: x19[8], x19[16] = x0, x20; x20 = x19[32]; loop
        "e20301aa 03144038 7f800071 c0ffff54 7f240071 80ffff54"  # cut: do x3 = *x0++ while it is a space or a tab
        "7f800071 e8000054 20010054 7f280071 88000054 7f240071 a2000054 83000034"  # copy: at one of four: copied
        "23140038 03144038 f6ffff17"  # *x1++ = x3; x3 = *x0++; copy
        "200002cb d3ffff17"  # x0 = x1 - x2; done
        "200080d2 c80b80d2 010000d4"  # quit: exit_group(1)
    ),
}
_NAMES: Final = (
    "read", "write", "close", "openat", "statx", "dup3", "fchown", "chdir", "getcwd", "prctl", "setgroups", "setresgid",
    "setresuid", "umask", "capset", "pipe2", "seccomp", "clone", "clone3", "sendmsg", "exit_group", "setsid", "setns",
    "keyctl", "sched_setaffinity", "faccessat", "execve", "fcntl", "prlimit64", "close_range",
    "rt_sigaction", "openat2", "readlinkat", "fstatfs", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount",
    "mount_setattr", "mkdirat", "mknodat", "symlinkat", "fchownat", "unshare", "sethostname", "setdomainname",
    "pivot_root", "umount2", "fchdir", "recvfrom", "fsetxattr",
)  # fmt: skip
_NUMBERS: Final[dict[str, tuple[int, ...]]] = {
    "x86_64": (0, 1, 3, 257, 332, 292, 93, 80, 79, 157, 116, 119, 117, 95, 126, 293, 317, 56, 435, 46, 231, 112, 308,
               250, 203, 269, 59, 72, 302, 436, 13, 437, 267, 138,
               428, 429, 430, 431, 432, 442, 258, 259, 266, 260, 272, 170, 171, 155, 166, 81, 45, 190),
    "aarch64": (63, 64, 57, 56, 291, 24, 55, 49, 17, 167, 159, 149, 147, 166, 91, 59, 277, 220, 435, 211, 94, 157, 268,
                219, 122, 48, 221, 25, 261, 436, 134, 437, 78, 44,
                428, 429, 430, 431, 432, 442, 34, 33, 36, 54, 97, 161, 162, 41, 39, 50, 207, 7),
}  # fmt: skip
_MACHINE: Final = os.uname().machine  # read once: a container's personality(2) can change what uname says
_CALLS: Final = dict(zip(_NAMES, _NUMBERS.get(_MACHINE, ()), strict=False))
_HEADER: Final = 40
# In the header: the error and the entry that it is of, and the pointer to the entries for failures.
_NUMBER_AT, _FAILED_AT, _FAILURE_AT = 8, 16, 32
SCRATCH: Final = BASE + (512 << 10)  # memory that is not sent, and zero until the list writes to it
_ENTRY: Final = struct.Struct("=13Q")
_WORD: Final = struct.Struct("=Q")
_ARGUMENTS_AT, _STORE_AT, _ZERO_AT, _POSITIVE_AT, _ERROR_AT = 8, 56, 64, 72, 80
_ALL_BITS: Final = 2**64 - 1
_NO_ERRORS: Final = 0, 0
_PADDING: Final = tuple(bytes(-length & 7) for length in range(8))
# All that can be set, except the library's own: posix_spawn(3) first asks for the state of each one that is missing.
_SIGNALS: Final = tuple(sorted({*range(1, 65)} - {signal.SIGKILL, signal.SIGSTOP, 32, 33}))
_MOST: Final = 160 << 10  # bytes of a list: it is one packet, and must fit into a socket's default buffer


class Entry(int):
    """The offset of one system call in the list. As an argument of a later call it stands for its result."""

    __slots__ = ()

    @property
    def zero(self) -> int:
        """The offset of the pointer to the next entry after a result of 0."""
        return self + _ZERO_AT

    @property
    def positive(self) -> int:
        """The same, after a result above 0."""
        return self + _POSITIVE_AT

    @property
    def error(self) -> int:
        """The same, after an allowed error."""
        return self + _ERROR_AT


class Script:
    """A list that is being made.

    A way is a pointer to the next entry (`Entry.zero` and so on). A new entry is put at all open ways. These are the
    ways of the entry before, except those that the caller took (`take`) to put them elsewhere (`put`).
    """

    def __init__(self) -> None:
        self.image = bytearray(_HEADER)
        self.names: dict[int, About] = {}  # what the entry at each address does, to explain a failure
        self.passing: list[int] | None = None  # offsets of later calls' sixth arguments, if wanted
        self._ways: list[int] = [24]

    def data(self, content: bytes) -> int:
        """The address of a copy of `content`."""
        image = self.image
        image += _PADDING[len(image) & 7]
        address = BASE + len(image)
        image += content
        return address

    def text(self, content: str | bytes) -> int:
        return self.data((os.fsencode(content) if isinstance(content, str) else content) + b"\0")

    def room(self, size: int) -> int:
        return self.data(bytes(size))

    def call(
        self, name: str, *arguments: int | Entry, about: About | None, allow: tuple[int, ...] = (), store: int = 0
    ) -> Entry:
        """Append a system call. Errors in `allow` continue like success. A result above 0 is written to `store`."""
        return self._append(_CALLS[name], arguments, about, allow, store)

    def look(self, address: int, mask: int = _ALL_BITS, expected: int = 0, *, store: int = 0) -> Entry:
        """Append a comparison of the eight bytes at an address. The result is 0 if the masked value is `expected`."""
        return self._append(LOOK, (address, mask, expected), None, (), store)

    def cut(self, address: int, to: int) -> Entry:
        """Append a copy of the word at an address, or after blanks there. The result is its length.

        The word ends where the kernel ends an interpreter's name: before a space, tab, line feed or null byte. `to`
        must have as much room, and be zero.
        """
        return self._append(CUT, (address, to), None, (), 0)

    def require(self, address: int, mask: int, expected: int, *, about: About) -> None:
        """Fail with EBADF unless the masked value is `expected`."""
        right = self.take(self.look(address, mask, expected).zero)
        self.fail(about)
        self.put(right)

    def fail(self, about: About) -> None:
        """Append a call that always fails (EBADF), so that `about` is reported."""
        self.call("close", _ALL_BITS, about=about)
        self.end()

    def take(self, way: int) -> int:
        """Close an open way: the next entry is not put there. Returns it for `put`."""
        self._ways.remove(way)
        return way

    def put(self, *ways: int) -> None:
        """Open ways: they lead to the next entry."""
        self._ways += ways

    def end(self) -> None:
        """Close all open ways: nothing follows the last entry."""
        self._ways = []

    def on_failure(self) -> None:
        """Begin the entries that are executed after an error that is not allowed."""
        self._ways = [_FAILURE_AT]

    def from_now_on_failure(self) -> int:
        """Append that other entries are executed after an error. Returns the way to them, for `put`."""
        pointer = self.room(8)
        self.look(pointer, store=BASE + _FAILURE_AT)
        return pointer - BASE

    def repeat_on(self, number: int, times: int) -> None:
        """Append, as the first entries on failure, that a call with this error is made again; so often in one list."""
        others: list[int] = []
        for _time in range(times):
            others.append(self.take(self.look(BASE + _NUMBER_AT, expected=number).positive))
            next_failure = self.from_now_on_failure()
            self._go_to_what_failed()
            self.put(next_failure)
        self.put(*others)

    def _go_to_what_failed(self) -> None:
        """Append a jump: the address of the entry that failed becomes the next entry's."""
        jump = self.look(BASE + _FAILED_AT)
        _WORD.pack_into(self.image, jump + _STORE_AT, BASE + jump.positive)
        self.end()

    def open_ways(self) -> list[int]:
        """Close all open ways and return them for `put`."""
        ways, self._ways = self._ways, []
        return ways

    def _append(
        self, number: int, arguments: Sequence[int | Entry], about: About | None, allow: tuple[int, ...], store: int
    ) -> Entry:
        # A start appends four hundred: what is slow here is slow for each container.
        image = self.image
        image += _PADDING[len(image) & 7]
        at = len(image)
        values = [0] * 6
        index = 0
        for argument in arguments:
            if type(argument) is Entry:
                _WORD.pack_into(image, argument + _STORE_AT, BASE + at + _ARGUMENTS_AT + 8 * index)
            else:
                values[index] = argument & _ALL_BITS
            index += 1  # noqa: SIM113  # enumerate makes tuples
        mask, more = _errors(allow) if allow else _NO_ERRORS
        image += _ENTRY.pack(number & _ALL_BITS, *values, store, 0, 0, 0, mask, more)
        address = BASE + at
        for way in self._ways:
            _WORD.pack_into(image, way, address)
        self._ways = [at + _ZERO_AT, at + _POSITIVE_AT, at + _ERROR_AT] if allow else [at + _ZERO_AT, at + _POSITIVE_AT]
        if self.passing is not None and number >= 0:
            self.passing.append(at + _ARGUMENTS_AT + 40)
        if about is not None:
            self.names[address] = about
        return Entry(at)

    def copy(self) -> Script:
        """Return a copy that can be continued independently. It has only the names of its new entries."""
        other = Script()
        other.image = bytearray(self.image)
        other.passing = None if self.passing is None else list(self.passing)
        other._ways = list(self._ways)
        return other

    def finished(self) -> bytearray:
        """Return the list, with an empty report in its header. It is the script's own memory."""
        empty = encode(Undone(0, 0))
        self.image[: len(empty)] = empty
        return self.image


def _errors(allow: tuple[int, ...]) -> tuple[int, int]:
    """The mask of these errors, in two words."""
    if allow is EVERY_ERROR:
        return _ALL_BITS, _ALL_BITS
    mask = 0
    for error in allow:
        mask |= 1 << error
    return mask & _ALL_BITS, mask >> 64


class Runner:
    """Holds the program in a memfd and starts it."""

    def __init__(self) -> None:
        code = _CODE.get(_MACHINE) if syscalls.has_close_range() else None
        self.program = -1 if code is None else in_memory("crisp-script", executable(code, _MACHINE), 0o500)

    @property
    def can_run(self) -> bool:
        """Whether there is a program for this machine and the kernel has all calls of the lists (Linux 5.9)."""
        return self.program >= 0

    def start(
        self, image: bytes, channel: socket.socket, descriptors: Sequence[int], *title: str
    ) -> tuple[int, int] | None:
        """`spawn` the program, and send it the list by its parent's end of the channel.

        Returns its pid and a pidfd, or None if the machine does not allow that; then no process is left.
        """
        try:
            pid, pidfd = self.spawn(descriptors, *title)
        except OSError:  # executable memory is forbidden (vm.memfd_noexec=2), or a module refuses it
            return None
        try:
            # Not before there is a process for it: a forked interpreter would end with the list unread, and then the
            # kernel answers the next recv(2) with ECONNRESET in the place of a report (unix(7)).
            channel.send(image)
        except OSError:  # net.core.wmem_default is smaller than the list
            end(pid, pidfd)
            return None
        return pid, pidfd

    def spawn(self, descriptors: Sequence[int], *title: str) -> tuple[int, int]:
        """Start the program with these descriptors as 0, 1, 2 and so on. Returns its pid and a pidfd.

        `title` is what process lists show.

        It inherits no other close-on-exec descriptors and no environment, has no signal handlers and blocks no signals.
        The caller must be single-threaded. Raises OSError; then no process is left.
        """
        aside: list[int] = []
        try:
            actions = []
            for target, source in enumerate(descriptors):
                if target != source < len(descriptors):  # another descriptor's target
                    aside.append(os.dup(source))
                    while aside[-1] < len(descriptors):
                        aside.append(os.dup(source))
                    source = aside[-1]
                actions.append((os.POSIX_SPAWN_DUP2, source, target))
            pid = os.posix_spawn(
                f"/proc/self/fd/{self.program}", title or ("crisp-exec",), {},
                file_actions=actions, setsigmask=(), setsigdef=_SIGNALS,
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
    """Whether the list is short enough to be sent."""
    return len(image) <= _MOST
