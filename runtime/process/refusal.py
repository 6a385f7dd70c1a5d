"""What a list of system calls does after the kernel has refused to execute the program: it reports why.

It reports the error at once. Then it looks at the file and its interpreters, as `runtime.process.unexecutable` does,
and reports that too: in between the container's filter may kill it.
"""

from __future__ import annotations

import os
import stat
import struct

from linux import syscalls
from runtime.errors import ExecFailed
from runtime.light import dataclass
from runtime.process.script import BASE, CHANNEL, EVERY_ERROR, SCRATCH, Entry, Script
from runtime.process.unexecutable import BEGINNING, FILES, Facts, explain
from runtime.wire.reports import Undone, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

_REPORT_BYTES: Final = len(encode(Undone(0, 0)))
_STATUS_BYTES, _MODE_AT, _SIZE_AT = 256, 28, 40  # struct statx
_STATFS_BYTES, _FLAGS_AT = 256, 80  # struct statfs
_FACTS_BYTES: Final = _STATUS_BYTES + _STATFS_BYTES + BEGINNING
_STATX_BASIC: Final = 0x7FF
_NAME_BYTES: Final = BEGINNING + 8
_NAMES: Final = SCRATCH + FILES * _FACTS_BYTES  # of the interpreters
_MSG_NOSIGNAL, _MSG_DONTWAIT = 0x4000, 0x40
_X_OK: Final = 1
_SCRIPT: Final = int.from_bytes(b"#!", "little")
_TYPE, _REGULAR = 0xF000 << 32, stat.S_IFREG << 32  # in the eight bytes before the mode's end
_FILE, _CONTENT = CHANNEL + 1, CHANNEL + 2  # descriptors


@dataclass(frozen=True, slots=True)
class Refusal:
    """An execve(2) of a list: the program's name as it was given, and the process's user."""

    name: str
    uid: int
    gid: int

    def error(self, number: int, facts: bytes) -> ExecFailed:
        """Return the error in runc's words, and what the file adds. Trusts nothing: the container may have sent it."""
        why = explain(number, _read(facts), self.uid, self.gid)
        return ExecFailed(f'exec: "{self.name}": {os.strerror(number).lower()}{": " if why else ""}{why}', number)


def _read(facts: bytes) -> Sequence[Facts]:
    if len(facts) != FILES * _FACTS_BYTES:
        return []
    files = (_read_one(facts[at : at + _FACTS_BYTES]) for at in range(0, len(facts), _FACTS_BYTES))
    return [file for file in files if file.mode]  # what was not looked at is zero


def _read_one(facts: bytes) -> Facts:
    (mode,), (size,) = struct.unpack_from("=H", facts, _MODE_AT), struct.unpack_from("=Q", facts, _SIZE_AT)
    (flags,) = struct.unpack_from("=Q", facts, _STATUS_BYTES + _FLAGS_AT)
    content = facts[_STATUS_BYTES + _STATFS_BYTES :][:size]
    return Facts(mode, flags, content if any(content) or not size else None)


def report_refusal(script: Script, path: Callable[[], int | Entry]) -> None:
    """Append the reports. `path` appends what finds the address of the program's path. Nothing follows."""

    leave = script.from_now_on_failure()
    _try(script, "write", CHANNEL, BASE, _REPORT_BYTES)
    ends: list[int] = []
    for index in range(FILES):
        ends += _look(script, index, path)
    script.put(*ends)
    vectors = script.data(struct.pack("=QQQQ", BASE, _REPORT_BYTES, SCRATCH, FILES * _FACTS_BYTES))
    header = script.data(struct.pack("=QIIQQQQiI", 0, 0, 0, vectors, 2, 0, 0, 0, 0))
    _try(script, "sendmsg", CHANNEL, header, _MSG_NOSIGNAL | _MSG_DONTWAIT)
    script.put(leave)
    script.call("exit_group", 1, about=None)
    script.end()


def _look(script: Script, index: int, path: Callable[[], int | Entry]) -> list[int]:
    """Append what looks at one file, and finds the name of the next. Returns the ways on which there is none."""
    status = SCRATCH + index * _FACTS_BYTES
    statfs, content = status + _STATUS_BYTES, status + _STATUS_BYTES + _STATFS_BYTES

    def name() -> int | Entry:
        return _name(index) if index else path()

    _try(script, "close_range", _FILE, 2**32 - 1, 0)
    opened = _try(script, "openat", syscalls.AT_FDCWD, name(), os.O_PATH | os.O_CLOEXEC)
    ends = [script.take(opened.error)]
    _try(script, "statx", _FILE, script.text(""), syscalls.AT_EMPTY_PATH, _STATX_BASIC, status)
    _try(script, "fstatfs", _FILE, statfs)
    # Others may wait for somebody, or act, when they are opened.
    ends.append(script.take(script.look(status + _MODE_AT - 4, _TYPE, _REGULAR).positive))
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    ends.append(script.take(_try(script, "openat", syscalls.AT_FDCWD, name(), flags).error))
    _try(script, "read", _CONTENT, content, BEGINNING)
    ends.append(script.take(script.look(content, 0xFFFF, _SCRIPT).positive))
    ends.append(script.take(_try(script, "faccessat", syscalls.AT_FDCWD, name(), _X_OK).error))
    ends.append(script.take(script.cut(content + len("#!"), _name(index + 1)).zero))
    return ends


def _name(index: int) -> int:
    """The address of the name of the interpreter that is looked at as this file."""
    return _NAMES + index * _NAME_BYTES


def _try(script: Script, name: str, *arguments: int | Entry) -> Entry:
    return script.call(name, *arguments, about=None, allow=EVERY_ERROR)
