"""Explains why an entry of a list of system calls has failed (runtime/process/script.py).

Most entries have an operation and its object, and the kernel's error explains the rest. The others have one of the
values here. All can be sent to another process.
"""

from __future__ import annotations

import errno
import marshal
import os

from runtime.errors import ExecFailed, OperationFailed, WrongMountPoint, from_json
from runtime.light import dataclass
from runtime.process.refusal import Refusal
from runtime.process.unexecutable import one_word

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

    from runtime.errors import RuntimeCoreError
    from runtime.process.script import About


@dataclass(frozen=True, slots=True)
class Always:
    """An entry whose failure is always this error."""

    told: Mapping[str, Any]

    @classmethod
    def error_of(cls, error: RuntimeCoreError) -> Always:
        return cls(error.to_json())

    def error(self, _number: int, _facts: bytes) -> RuntimeCoreError:
        return from_json(self.told)


@dataclass(frozen=True, slots=True)
class Mounting:
    """A part of a mount."""

    source: str
    type: str
    destination: str

    def error(self, number: int, _facts: bytes) -> RuntimeCoreError:
        if number == errno.ENOTDIR:
            about = f"mount `{self.source or self.type}` on", f"`{self.destination}`"
            return WrongMountPoint(*about, "a component of that path is a file in the container")
        return OperationFailed(f"mount `{self.type or self.source}` on", self.destination, number)


@dataclass(frozen=True, slots=True)
class NoProgram:
    """The program was not found, in runc's words. The default reason is the error's."""

    name: str
    number: int = 0
    reason: str = ""
    before: str = ""

    def error(self, number: int, _facts: bytes) -> RuntimeCoreError:
        told = f"{self.before}{self.reason or os.strerror(number).lower()}{one_word(self.name)}"
        return ExecFailed(f'exec: "{self.name}": {told}', self.number or number)


_KINDS: Final = (Always, Mounting, NoProgram, Refusal)


def fixed(operation: str, about: str, number: int) -> Always:
    """The same error whatever the kernel's was."""
    return Always.error_of(OperationFailed(operation, about, number))


def encode(names: Mapping[int, About]) -> bytes:
    """Encode what the entries at these addresses do."""
    return marshal.dumps([(at, about if isinstance(about, tuple) else _members(about)) for at, about in names.items()])


def decode(encoded: bytes) -> Mapping[int, About]:
    """The inverse of `encode`."""
    return {
        at: _KINDS[about[0]](*about[1:]) if isinstance(about[0], int) else about for at, about in marshal.loads(encoded)
    }


def _members(about: Any) -> tuple[Any, ...]:
    return _KINDS.index(type(about)), *(getattr(about, name) for name in type(about).__slots__)
