"""What a list of system calls does after the kernel has refused to execute the program: it reports why.

It reports the error at once. Then it looks at the file, as `runtime.process.unexecutable` does, and reports that too:
in between the container's filter may kill it.
"""

from __future__ import annotations

import os
import stat
import struct

from linux import syscalls
from runtime.errors import ExecFailed
from runtime.light import dataclass
from runtime.process.script import BASE, CHANNEL, EVERY_ERROR, SCRATCH, Entry, Script
from runtime.process.unexecutable import BEGINNING, Facts, explain
from runtime.wire.reports import Undone, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

_REPORT_BYTES: Final = len(encode(Undone(0, 0)))
_STATUS_BYTES, _MODE_AT, _SIZE_AT = 256, 28, 40  # struct statx
_STATFS_BYTES, _FLAGS_AT = 256, 80  # struct statfs
_FACTS_BYTES: Final = _STATUS_BYTES + _STATFS_BYTES + BEGINNING
_STATX_BASIC: Final = 0x7FF
_MSG_NOSIGNAL: Final = 0x4000
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
        why = explain(number, _read(facts), self.uid, self.gid) if len(facts) == _FACTS_BYTES else ""
        return ExecFailed(f'exec: "{self.name}": {os.strerror(number).lower()}{": " if why else ""}{why}', number)


def _read(facts: bytes) -> Facts:
    (mode,), (size,) = struct.unpack_from("=H", facts, _MODE_AT), struct.unpack_from("=Q", facts, _SIZE_AT)
    (flags,) = struct.unpack_from("=Q", facts, _STATUS_BYTES + _FLAGS_AT)
    content = facts[_STATUS_BYTES + _STATFS_BYTES :][:size]
    return Facts(mode, flags, content if any(content) or not size else None)


def report_refusal(script: Script, path: Callable[[], int | Entry]) -> None:
    """Append the reports. `path` appends what finds the address of the program's path. Nothing follows."""

    def tried(name: str, *arguments: int | Entry) -> Entry:
        return script.call(name, *arguments, about=None, allow=EVERY_ERROR)

    leave = script.from_now_on_failure()
    tried("write", CHANNEL, BASE, _REPORT_BYTES)
    opened = tried("openat", syscalls.AT_FDCWD, path(), os.O_PATH | os.O_CLOEXEC)
    ends = [script.take(opened.error)]
    status, statfs, content = SCRATCH, SCRATCH + _STATUS_BYTES, SCRATCH + _STATUS_BYTES + _STATFS_BYTES
    tried("statx", _FILE, script.text(""), syscalls.AT_EMPTY_PATH, _STATX_BASIC, status)
    tried("fstatfs", _FILE, statfs)
    # Others may wait for somebody, or act, when they are opened.
    other = script.take(script.look(status + _MODE_AT - 4, _TYPE, _REGULAR).positive)
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    unreadable = script.take(tried("openat", syscalls.AT_FDCWD, path(), flags).error)
    tried("read", _CONTENT, content, BEGINNING)
    script.put(other, unreadable)
    vectors = script.data(struct.pack("=QQQQ", BASE, _REPORT_BYTES, SCRATCH, _FACTS_BYTES))
    header = script.data(struct.pack("=QIIQQQQiI", 0, 0, 0, vectors, 2, 0, 0, 0, 0))
    tried("sendmsg", CHANNEL, header, _MSG_NOSIGNAL)
    script.put(*ends, leave)
    script.call("exit_group", 1, about=None)
    script.end()
