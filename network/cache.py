"""What was added, on disk: one JSON file an attachment, which says how to take it away again after any crash."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import msgspec

from network.errors import NetworkError
from network.model import Attachment

_log = logging.getLogger(__name__)


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """An attachment, the network configuration list it was made with, and what ADD answered (None: not yet)."""

    attachment: Attachment
    conflist: msgspec.Raw
    result: dict[str, Any] | None = None


class ResultCache:
    """The entries under one directory. Blocking calls; `save` waits for the disk. Raises NetworkError."""

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

    def save(self, entry: Entry) -> None:
        """Write `entry` in place of the attachment's last one. On return it survives a power cut."""
        path = self._path(entry.attachment)
        temporary = path.with_suffix(".tmp")
        try:
            created = not path.exists()
            with open(temporary, "wb") as file:
                file.write(msgspec.json.encode(entry))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            if created:  # a lost replacement would leave the older entry, which can be undone as well
                self._sync_directory()
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
            return msgspec.json.decode(path.read_bytes(), type=Entry)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            _log.warning("read %s: %s", path, error)
            return None

    def _sync_directory(self) -> None:
        with contextlib.ExitStack() as stack:
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            os.fsync(descriptor)
