"""Stores each recording in a file: appends lines, and rewrites the file when it has twice the size of the recording.

Nothing is synced: the data survives a kill of crispd, but not a crash of the machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from pods.recorder.recording import Subject

if TYPE_CHECKING:
    from collections.abc import Iterator

_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
_NEW: Final = ".new"


class Files:
    """The directory of recordings. All methods raise OSError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def prepare(self) -> None:
        """Create the directory."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def read(self) -> Iterator[tuple[Subject, list[bytes], int]]:
        """Yield each file's subject, lines, and size in bytes. Remove files that are not recordings."""
        for path in self._directory.iterdir():
            with contextlib.suppress(OSError):
                content = b"" if path.name.endswith(_NEW) else path.read_bytes()
                subject, *lines = content.splitlines(keepends=True) or [b""]
                try:
                    yield msgspec.json.decode(subject, type=Subject), lines, len(content)
                except (msgspec.DecodeError, RecursionError):
                    path.unlink()  # nothing would find or remove it later

    def append(self, subject: Subject, lines: bytes) -> None:
        """Append lines to a recording."""
        descriptor = os.open(self._path(subject), _FLAGS, 0o600)
        try:
            if os.fstat(descriptor).st_size == 0:
                lines = msgspec.json.encode(subject) + b"\n" + lines
            _write(descriptor, lines)
        finally:
            os.close(descriptor)

    def replace(self, subject: Subject, lines: bytes) -> None:
        """Replace a recording's lines."""
        path = self._path(subject)
        new = path.with_name(path.name + _NEW)
        content = msgspec.json.encode(subject) + b"\n" + lines
        descriptor = os.open(new, _FLAGS | os.O_TRUNC, 0o600)
        try:
            _write(descriptor, content)
            new.rename(path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def remove(self, subject: Subject) -> None:
        """Remove the file, if there is one."""
        self._path(subject).unlink(missing_ok=True)

    def _path(self, subject: Subject) -> Path:
        # CRI allows any name; a file's name has at most 255 bytes and no slash.
        return self._directory / hashlib.sha256(msgspec.json.encode(subject)).hexdigest()[:32]


def _write(descriptor: int, content: bytes) -> None:
    """Write all of it. A nearly full disk accepts a part, and reports the error only for the rest."""
    while content:
        content = content[os.write(descriptor, content) :]
