"""What was added, on disk: a file an attachment, which says how to take it away again after any crash.

The first line (the attachment and its network configuration list) is on disk before a plugin runs. The second line,
what ADD answered, is appended without waiting for the disk, which would cost as much again: after a power cut the
namespace is gone anyway, a line that was lost or torn counts as no answer, and DEL works without it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import msgspec

from network.errors import NetworkError
from network.model import Attachment

_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_log = logging.getLogger(__name__)


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """An attachment, the network configuration list it is made with, and what ADD answered (None: not known)."""

    attachment: Attachment
    conflist: msgspec.Raw
    result: dict[str, Any] | None = None


class ResultCache:
    """The entries under one directory. Blocking calls; `begin` waits for the disk. Raises NetworkError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def prepare(self) -> None:
        """Make the directory, and drop what a crash left half-written in it."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for leftover in self._directory.glob("*.tmp"):
                leftover.unlink()
        except OSError as error:
            raise NetworkError(f"prepare {self._directory}: {error.strerror}") from error

    def begin(self, entry: Entry) -> None:
        """Write the first line. On return the entry survives a power cut."""
        path = self._path(entry.attachment)
        temporary = path.with_suffix(".tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(_line(entry))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            self._sync_directory()
        except OSError as error:
            raise NetworkError(f"write {path}: {error.strerror}") from error

    def complete(self, attachment: Attachment, result: dict[str, Any]) -> None:
        """Append what ADD answered to an entry that was begun. It survives this process, not a power cut."""
        path = self._path(attachment)
        try:
            with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), "wb") as file:
                file.write(_line(result))
        except OSError as error:
            raise NetworkError(f"write {path}: {error.strerror}") from error

    def load(self, attachment: Attachment) -> Entry | None:
        """The entry of `attachment`, or None. One that cannot be read is told in the log and counts as none."""
        return self._read(self._path(attachment))

    def forget(self, attachment: Attachment) -> None:
        """Drop the entry, if there is one. Not synced: one that a power cut brings back is undone once more."""
        path = self._path(attachment)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise NetworkError(f"remove {path}: {error.strerror}") from error

    def entries(self) -> list[Entry]:
        """Every readable entry, in the order of file names."""
        found = (self._read(path) for path in sorted(self._directory.glob("*.json")))
        return [entry for entry in found if entry is not None]

    def _path(self, attachment: Attachment) -> Path:
        # "@" is in no valid sandbox id, so no two attachments share a file.
        return self._directory / f"{attachment.sandbox_id}@{attachment.ifname}.json"

    def _read(self, path: Path) -> Entry | None:
        try:
            begun, _, completed = path.read_bytes().partition(b"\n")
            entry = msgspec.json.decode(begun, type=Entry)
        except FileNotFoundError:
            return None
        except (OSError, *_UNREADABLE) as error:
            _log.warning("read %s: %s", path, error)
            return None
        try:
            result = msgspec.json.decode(completed, type=dict[str, Any]) if completed else None
        except _UNREADABLE:
            result = None
        return msgspec.structs.replace(entry, result=result)

    def _sync_directory(self) -> None:
        with contextlib.ExitStack() as stack:
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            os.fsync(descriptor)


def _line(value: Entry | dict[str, Any]) -> bytes:
    # The raw configuration list is somebody's file, with line breaks of its own.
    return msgspec.json.format(msgspec.json.encode(value), indent=-1) + b"\n"
