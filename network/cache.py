"""Stores each attachment in a file on disk, so that it can be removed after any crash.

The first line (the attachment and its network configuration list) is synced to disk before a plugin runs. The second
line, the result of ADD, is appended without a sync, which would cost as much again: after a power cut the namespace
is gone anyway, a lost or torn second line counts as no result, and DEL works without one.
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
    """An attachment, the network configuration list it was added with, and the result of ADD (None: not known)."""

    attachment: Attachment
    conflist: msgspec.Raw
    result: dict[str, Any] | None = None


class ResultCache:
    """Keeps the entries of one directory. The calls block; `begin` syncs to disk. Raises NetworkError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def prepare(self) -> None:
        """Make the directory, and remove the half-written files that a crash left in it."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for leftover in self._directory.glob("*.tmp"):
                leftover.unlink()
        except OSError as error:
            raise NetworkError(f"prepare {self._directory}: {error.strerror}") from error

    def begin(self, entry: Entry) -> None:
        """Write the first line. When this returns, the entry survives a power cut."""
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
        """Append the result of ADD to an entry written by `begin`. It survives this process, not a power cut."""
        path = self._path(attachment)
        try:
            with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), "wb") as file:
                file.write(_line(result))
        except OSError as error:
            raise NetworkError(f"write {path}: {error.strerror}") from error

    def load(self, attachment: Attachment) -> Entry | None:
        """Return the entry of `attachment`, or None. An unreadable one is logged and counts as none."""
        return self._read(self._path(attachment))

    def forget(self, attachment: Attachment) -> None:
        """Remove the entry, if there is one. Not synced: an entry that reappears after a power cut is removed again."""
        path = self._path(attachment)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise NetworkError(f"remove {path}: {error.strerror}") from error

    def entries(self) -> list[Entry]:
        """Return all readable entries in the order of their file names."""
        found = (self._read(path) for path in sorted(self._directory.glob("*.json")))
        return [entry for entry in found if entry is not None]

    def _path(self, attachment: Attachment) -> Path:
        # No valid sandbox id contains "@", so no two attachments share a file.
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
    # The raw configuration list comes from a file and may contain line breaks: remove them.
    return msgspec.json.format(msgspec.json.encode(value), indent=-1) + b"\n"
