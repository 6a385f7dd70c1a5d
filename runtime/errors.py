"""Errors of the runtime package. They travel as JSON from a container's child to the shim and to the daemon."""

from __future__ import annotations

import os
from errno import ETIMEDOUT

from linux.errors import MissingCall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar, Final

_FAMILY: dict[str, type[RuntimeCoreError]] = {}
NO_CALL: Final = "the shim has no call"  # how shims answer an unknown call; running shims use these words, so keep them
OPEN_IN_IMAGE: Final = "open in image"  # the operation that fails if the image of a volume lacks the path


class RuntimeCoreError(Exception):
    """An operation of the OCI runtime core failed. Base of all errors of this package."""

    members: ClassVar[tuple[str, ...]] = ("message",)

    def __init_subclass__(cls) -> None:
        _FAMILY[cls.__name__] = cls

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message

    def to_json(self) -> dict[str, Any]:
        """Return the error as a JSON-serialisable object; `from_json` is the inverse."""
        return {"error": type(self).__name__} | {name: getattr(self, name) for name in self.members}


class SpecError(RuntimeCoreError):
    """The OCI configuration is invalid. `path` is the JSON path of the invalid member ("process.user.uid")."""

    members = ("path", "reason")

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path
        self.reason = reason


class OperationFailed(RuntimeCoreError):
    """The kernel refused an operation: "mount `proc` on `/proc`: Operation not permitted".

    `object` names what was operated on. The message puts it in backticks, unless it contains backticks already because
    it names several things.
    """

    members = ("operation", "object", "errno")

    def __init__(self, operation: str, object: str, errno: int) -> None:
        super().__init__(f"{_verb_object(operation, object)}: {os.strerror(errno)}")
        self.operation = operation
        self.object = object
        self.errno = errno

    @classmethod
    def of(cls, operation: str, object: str, error: OSError) -> OperationFailed:
        """Convert Python's OSError; its timeouts have no number."""
        return cls(operation, object, error.errno or (ETIMEDOUT if isinstance(error, TimeoutError) else 0))


class ImageMountFailed(RuntimeCoreError):
    """An image could not be mounted as a volume."""


class WrongMountPoint(RuntimeCoreError):
    """A mount would put a file on a directory, or a directory on a file. The wording is known to runc's users."""

    members = ("operation", "object", "reason")

    def __init__(self, operation: str, object: str, reason: str) -> None:
        super().__init__(
            f"{_verb_object(operation, object)}: not a directory: {reason}: "
            "Are you trying to mount a directory onto a file (or vice-versa)?"
        )
        self.operation = operation
        self.object = object
        self.reason = reason


    @classmethod
    def of(cls, source: str, destination: str, *, is_directory: bool, field: str = "") -> WrongMountPoint:
        """Build the error for mounting `source` (`is_directory`: a directory) on the other kind at `destination`."""
        kinds = ("directory", "file") if is_directory else ("file", "directory")
        reason = f"the source is a {kinds[0]}, {destination!r} in the container is a {kinds[1]}"
        return cls(f"{field}: mount `{source}` on" if field else f"mount `{source}` on", f"`{destination}`", reason)


class NotRunning(RuntimeCoreError):
    """The operation needs a running container, and this one is not running."""


class NotSupported(RuntimeCoreError):
    """The machine lacks what the configuration needs: "set pids limit `100`: no pids cgroup controller"."""

    members = ("operation", "object", "reason")

    def __init__(self, operation: str, object: str, reason: str) -> None:
        super().__init__(f"{_verb_object(operation, object)}: {reason}")
        self.operation = operation
        self.object = object
        self.reason = reason


class ExecFailed(RuntimeCoreError):
    """The program of `process.args` could not be executed. The wording is known to runc's users."""

    members = ("message", "errno")

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


def _verb_object(operation: str, object: str) -> str:
    if not object:
        return operation
    return f"{operation} {object}" if "`" in object else f"{operation} `{object}`"


def from_json(record: Mapping[str, Any]) -> RuntimeCoreError:
    """Rebuild the error from a peer's `to_json`. A class that this version does not know becomes the base class."""
    try:
        kind = _FAMILY.get(record.get("error", ""), RuntimeCoreError)
        error = kind(*(record[name] for name in kind.members))
        if not str(error):  # raises if a member has the wrong type
            raise ValueError("an error without a word")
    except (KeyError, TypeError, ValueError, OverflowError):
        return RuntimeCoreError(str(record.get("message") or record.get("reason") or dict(record)))
    return error


class failing:
    """Context manager that converts OSError to OperationFailed with the operation and its object.

    A MissingCall becomes NotSupported.
    """

    __slots__ = ("_object", "_operation")

    def __init__(self, operation: str, object: str) -> None:
        self._operation = operation
        self._object = object

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, MissingCall):
            raise NotSupported(self._operation, self._object, error.strerror or "") from error
        if isinstance(error, OSError):
            raise OperationFailed.of(self._operation, self._object, error) from error
