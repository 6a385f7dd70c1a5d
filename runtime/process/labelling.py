"""Writes the labels for the next execve by a list of system calls; `runtime.process.labels` does it in an interpreter.

The checks are the same: /proc is a proc file system, seen from its root, and nothing covers the process's own part.
"""

from __future__ import annotations

import os
import struct

from linux import syscalls
from runtime.errors import NotSupported
from runtime.process.explanations import Always
from runtime.process.labels import LINK_BYTES, MISSING, NO_MODULE, NO_PROC, ONE_MOUNT, STEP, labels_of
from runtime.process.script import Script
from runtime.spec import values as oci

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_OPERATION: Final = "apply label"
_STATFS_BYTES: Final = 256
_LOW_WORD: Final = 2**32 - 1
_HOW_BYTES: Final = 24  # struct open_how
_ALL: Final = 2**64 - 1
_DIGIT, _DIGITS = 0xF0, 0x30  # of the characters of a path, 0x30 to 0x3f: digits, and neither "/" nor "."


def write_labels(script: Script, process: oci.Process, first: int) -> None:
    """Append the calls that set a process's labels, if it has any. `first` is the lowest descriptor that is free."""
    for label, paths in labels_of(process):
        _Label(script, label, first).write(paths)


class _Label:
    def __init__(self, script: Script, label: str, first: int) -> None:
        self._script = script
        self._label = label
        self._about = _OPERATION, label
        self._root, self._own, self._attribute = first, first + 1, first + 2
        self._statfs = script.room(_STATFS_BYTES)

    def write(self, paths: tuple[str, ...]) -> None:
        script, about = self._script, self._about
        self._open_own_directory()
        text = self._label.encode()
        written: list[int] = []
        for path in paths:
            how = self._how(os.O_WRONLY | os.O_CLOEXEC, ONE_MOUNT)
            missing = self._open(self._attribute, "openat2", self._own, script.text(path), how, _HOW_BYTES)
            self._require_proc(self._attribute, f"/proc/thread-self/{path} is not a file of proc")
            script.call("write", self._attribute, script.data(text), len(text), about=about)
            script.call("close", self._attribute, about=about)
            written += script.open_ways()
            script.put(*missing)
        script.fail(_refusal(self._label, NO_MODULE))
        script.put(*written)
        script.call("close", self._own, about=about)
        script.call("close", self._root, about=about)

    def _open_own_directory(self) -> None:
        """Open the directory that the link `thread-self` names, which nothing can cover."""
        script, about = self._script, self._about
        self._open(self._root, "openat", syscalls.AT_FDCWD, script.text("/proc"), STEP | os.O_DIRECTORY, allow=())
        self._require_proc(self._root, NO_PROC)
        own = script.room(LINK_BYTES)
        script.call("readlinkat", self._root, script.text("thread-self"), own, LINK_BYTES - 1, about=about)
        script.require(own, _DIGIT, _DIGITS, about=about)
        how = self._how(STEP | os.O_DIRECTORY, ONE_MOUNT | syscalls.RESOLVE_BENEATH)
        self._open(self._own, "openat2", self._root, own, how, _HOW_BYTES, allow=())

    def _open(self, fd: int, name: str, *arguments: int, allow: tuple[int, ...] = MISSING) -> list[int]:
        """Open what must become the descriptor `fd`. Returns the ways for errors that are allowed."""
        script, opened = self._script, self._script.room(8)
        call = script.call(name, *arguments, about=self._about, allow=allow, store=opened)
        missing = [script.take(call.error)] if allow else []
        script.require(opened, _ALL, fd, about=self._about)
        return missing

    def _require_proc(self, fd: int, reason: str) -> None:
        self._script.call("fstatfs", fd, self._statfs, about=self._about)
        magic = syscalls.PROC_SUPER_MAGIC
        self._script.require(self._statfs, _LOW_WORD, magic, about=_refusal(self._label, reason))

    def _how(self, flags: int, resolve: int) -> int:
        return self._script.data(struct.pack("=QQQ", flags, 0, resolve))


def _refusal(label: str, reason: str) -> Always:
    return Always.error_of(NotSupported(_OPERATION, label, reason))
