"""CRI log files: their lines, their ends, and how they grow.

One line is `TIMESTAMP SP STREAM SP TAGS SP CONTENT LF`; the tag P marks a piece of a longer line, F the line's end. No
container is involved here: the format is pure, and a file is followed through renames by its directory's inotify.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from cri.client.errors import LogUnreadable
from linux import inotify
from runtime.logs.place import open_to_read

_LINE = re.compile(rb"(\S+) (stdout|stderr) ([A-Z](?::\S*)?|[A-Z]\S*) (.*)", re.DOTALL)
_BLOCK = 1 << 16
_STIRS = inotify.MODIFY | inotify.MOVED_TO | inotify.CREATE | inotify.ONLYDIR


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the file. `content` ends in a newline unless the entry is a piece of a longer line."""

    timestamp: bytes
    stream: str  # "stdout" or "stderr"
    partial: bool
    content: bytes


def parse_entry(line: bytes) -> Entry | None:
    """The entry in a line of the file (without its LF); None if the line is not one, torn by a crash for example."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    timestamp, stream, tags, content = match.groups()
    partial = tags.split(b":")[0] == b"P"
    return Entry(timestamp, stream.decode(), partial, content if partial else content + b"\n")


class Decoder:
    """Bytes in, entries out. What is not an entry is counted in `malformed` and left out."""

    def __init__(self) -> None:
        self._rest = b""
        self.malformed = 0

    def feed(self, data: bytes) -> list[Entry]:
        """The entries that `data` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        entries = [parse_entry(line) for line in lines]
        good = [entry for entry in entries if entry is not None]
        self.malformed += len(entries) - len(good)
        return good


def tail_offset(file: BinaryIO, count: int) -> int:
    """Where the last `count` lines of the container's output begin. Reads no more of the file's end than that takes."""
    found, seen = 0, set[str]()
    for after, line in _backwards(file):
        entry = parse_entry(line)
        # A stream's newest line may be in pieces, for good if it has no newline; it counts all the same.
        if entry is not None and (not entry.partial or entry.stream not in seen):
            seen.add(entry.stream)
            found += 1
            if found > count:
                return after
    return 0


def _backwards(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The file's lines that have their LF, last one first, each with the offset of what follows it."""
    position = file.seek(0, os.SEEK_END)
    rest, unfinished = b"", True
    while position:
        step = min(_BLOCK, position)
        position -= step
        file.seek(position)
        window = file.read(step) + rest
        rest, *lines = window.split(b"\n")
        end = position + len(window)
        for line in reversed(lines):
            if not unfinished:
                yield end + 1, line
            unfinished = False
            end -= len(line) + 1
    if not unfinished:
        yield len(rest) + 1, rest


class LogFile:
    """A log read from some line on, to its present end and, after `wait`, further; through rotations by rename.

    A context manager. Raises LogUnreadable if there is no such file to begin with.
    """

    def __init__(self, path: Path, tail: int | None = None) -> None:
        self._path = path
        self._decoder = Decoder()
        with ExitStack() as undo:
            try:
                # Watched before the first read, so that no growth falls between the two.
                self._watch = undo.enter_context(inotify.Inotify())
                self._watch.add(str(path.parent), _STIRS)
                self._file: BinaryIO = undo.enter_context(_open(path))
            except OSError as error:
                raise LogUnreadable(f"read log {path}: {error.strerror}") from None
            self._file.seek(0 if tail is None else tail_offset(self._file, tail))
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._file.close()
        self._watch.close()

    @property
    def malformed(self) -> int:
        """How many lines so far were not in the CRI format."""
        return self._decoder.malformed

    def read(self) -> Iterator[Entry]:
        """What has been written since the last time."""
        yield from self._drain()
        while (successor := self._successor()) is not None:
            # The old file was written to until the new one was there: nothing of it may be lost.
            yield from self._drain()
            self._file.close()
            self._file = successor
            yield from self._drain()

    def wait(self, timeout: float) -> None:
        """Return when something happened in the log's directory, or after `timeout` seconds."""
        self._watch.wait(timeout)

    def _drain(self) -> Iterator[Entry]:
        while data := self._file.read(_BLOCK):
            yield from self._decoder.feed(data)

    def _successor(self) -> BinaryIO | None:
        try:
            if not os.path.samestat(self._path.lstat(), os.fstat(self._file.fileno())):
                return _open(self._path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LogUnreadable(f"read log {self._path}: {error.strerror}") from None
        return None


def _open(path: Path) -> BinaryIO:
    """A log is a file: a pod that can reach its place may put a link or a pipe there."""
    return os.fdopen(open_to_read(str(path.absolute())), "rb", buffering=0)
