"""Why a program could not be executed, where the kernel's error does not say it: read from the file itself.

A missing interpreter is ENOENT, as if the program were missing; a program of another architecture is ENOEXEC, as is a
text without `#!`; and EACCES is a mode, a directory or a file system without execution. Each of these may also be true
of the interpreter that the file names.
"""

from __future__ import annotations

import errno
import os
import stat
import struct

from linux.elf import MACHINES
from runtime.light import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

BEGINNING: Final = 4096
FILES: Final = 3  # a script, its interpreter, and that one's; the kernel follows five
_PT_INTERP: Final = 3
_MARKS: Final = {  # byte order marks
    b"\xef\xbb\xbf#!": "its #! comes after a byte order mark, but must be the first two bytes",
    b"\xff\xfe#\0!\0": "it is text in UTF-16, in which the kernel finds no #! line",
    b"\xfe\xff\0#\0!": "it is text in UTF-16, in which the kernel finds no #! line",
}
_NAMES: Final = {
    3: "i386", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64",
    243: "riscv64", 258: "loongarch64",
}  # fmt: skip  # elf.h's e_machine, as uname -m has them


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a file: mode, flags of its file system, and its beginning, None if it was not read."""

    mode: int
    mount_flags: int = 0
    beginning: bytes | None = None


def reason(path: str, number: int) -> str:
    """What is to be added to the error `number` of executing `path`; "" where it says all. Raises nothing."""
    try:
        return explain(number, _look(path, number), os.geteuid(), os.getegid())
    except (OSError, ValueError):
        return ""


def _look(path: str, number: int) -> Sequence[Facts]:
    """Look at the program, and at its interpreters as far as they exist. Raises OSError."""
    files: list[Facts] = []
    following: bytes = os.fsencode(path)
    while following and len(files) < FILES and (not files or os.path.exists(following)):
        content = _content(following, number)
        files.append(Facts(os.stat(following).st_mode, os.statvfs(following).f_flag, content))
        following = _interpreter(content or b"")
    return files


def _content(path: bytes, number: int) -> bytes | None:
    """The beginning of a file that may itself be executed; None of one that may not, or not be read."""
    try:
        refused = number == errno.EACCES and not os.access(path, os.X_OK)
        return None if refused or not os.path.isfile(path) else _beginning(path)
    except PermissionError:
        return None


def one_word(name: str) -> str:
    """What to add if no program has this name: it may be a whole command line."""
    return ": it is one word, with spaces in it: are the arguments words of their own?" if len(name.split()) > 1 else ""


def explain(number: int, files: Sequence[Facts], uid: int, gid: int) -> str:
    """Return what is to be added to the error `number` that a process of this user got.

    `files` are the program and its interpreters. Trusts nothing in them.
    """
    if not files:
        return ""
    program, *interpreters = files
    if interpreters and (why := explain(number, interpreters, uid, gid)):
        return f'its interpreter "{_interpreter(program.beginning or b"").decode(errors="replace")}" (#!): {why}'
    try:
        if number == errno.EACCES:
            return _refused(program, uid, gid)
        if number in (errno.ENOENT, errno.ENOEXEC) and program.beginning is not None:
            return _of_content(program.beginning, number)
    except (ValueError, IndexError, struct.error):
        pass
    return ""


def _refused(facts: Facts, uid: int, gid: int) -> str:
    mode = facts.mode
    if stat.S_ISDIR(mode):
        return "it is a directory"
    if not mode & 0o111:
        return f"its mode {stat.S_IMODE(mode):04o} lets nobody execute it"
    if facts.mount_flags & os.ST_NOEXEC:
        return "the file system that it is on is mounted noexec"
    if not stat.S_ISREG(mode):
        return "it is not a regular file"
    if mode & 0o111 == 0o111:
        others = "a directory above it, an access control list or a security module"
        return f"its mode {stat.S_IMODE(mode):04o} lets everybody execute it, but {others} does not"
    return f"its mode is {stat.S_IMODE(mode):04o}, and the process runs as {uid}:{gid}"


def _beginning(path: bytes) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, BEGINNING)
    finally:
        os.close(descriptor)


def _of_content(content: bytes, number: int) -> str:
    if content[:2] == b"#!":
        interpreter = _interpreter(content).decode(errors="replace").rstrip("\r")
        if b"\r" in _first_line(content):
            return f'its interpreter "{interpreter}" ends in a carriage return: it has the line ends of DOS'
        if not interpreter:
            return "its #! line names no interpreter"
        if number == errno.ENOEXEC:
            return f'its interpreter "{interpreter}" (#!) is no program that {os.uname().machine} executes'
        return f'its interpreter "{interpreter}" (#!) is not in the container, or has none itself'
    if content[:4] == b"\x7fELF":
        return _of_elf(content, number)
    if number != errno.ENOEXEC:
        return ""
    for mark, told in _MARKS.items():
        if content.startswith(mark):
            return told
    if content.lstrip()[:2] == b"#!":
        return "its #! comes after white space, but must be the first two bytes"
    return "it is empty" if not content else "it is no ELF file, and has no #! line"


def _first_line(content: bytes) -> bytes:
    """What is after `#!` in the first line."""
    return content[2:].partition(b"\n")[0]


def _interpreter(content: bytes) -> bytes:
    """The name of a script's interpreter, as the kernel reads it: with a carriage return, say. b"" of no script."""
    if content[:2] != b"#!":
        return b""
    line = _first_line(content).lstrip(b" \t").partition(b"\0")[0]
    return line.replace(b"\t", b" ").partition(b" ")[0]


def _of_elf(content: bytes, number: int) -> str:
    order = "<" if content[5] == 1 else ">"
    (machine,) = struct.unpack_from(f"{order}H", content, 18)
    own = os.uname().machine
    if machine != MACHINES.get(own, machine):
        return f"it is a program for {_NAMES.get(machine, f'machine {machine}')}, and this is {own}"
    if number == errno.ENOENT and (interpreter := _elf_interpreter(content, order)):
        return f'its loader "{interpreter}" is not in the container'
    return ""


def _elf_interpreter(content: bytes, order: str) -> str:
    """PT_INTERP of elf(5), where it is in the file's beginning, as linkers put it."""
    wide = content[4] == 2
    start, size, count = (
        struct.unpack_from(f"{order}Q", content, 32) + struct.unpack_from(f"{order}HH", content, 54)
        if wide
        else struct.unpack_from(f"{order}I", content, 28) + struct.unpack_from(f"{order}HH", content, 42)
    )
    for at in range(start, start + size * min(count, 64), size):
        (kind,) = struct.unpack_from(f"{order}I", content, at)
        if kind == _PT_INTERP:
            form, offset = (f"{order}QQQQ", 8) if wide else (f"{order}IIII", 4)
            begin, *_, length = struct.unpack_from(form, content, at + offset)
            return content[begin : begin + length].rstrip(b"\0").decode(errors="replace")
    return ""
