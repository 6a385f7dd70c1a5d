"""Reads CRI log files: parses lines, finds the last lines, follows growth.

A line is `TIMESTAMP SP STREAM SP TAGS SP CONTENT LF`; the tag P marks a part of a longer line, F its end. Parsing is
pure; a file is followed through renames by an inotify watch on its directory.
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
    """A line of the file. `content` ends in a newline unless the entry is a part of a longer line."""

    timestamp: bytes
    stream: str  # "stdout" or "stderr"
    partial: bool
    content: bytes


def parse_entry(line: bytes) -> Entry | None:
    """Parse a line (without its LF); None if it is invalid, for example cut by a crash."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    timestamp, stream, tags, content = match.groups()
    partial = tags.split(b":")[0] == b"P"
    return Entry(timestamp, stream.decode(), partial, content if partial else content + b"\n")


class Decoder:
    """Converts bytes to entries. Invalid lines are counted in `malformed` and left out."""

    def __init__(self) -> None:
        self._rest = b""
        self.malformed = 0

    def feed(self, data: bytes) -> list[Entry]:
        """Return the entries that are complete with `data`."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        entries = [parse_entry(line) for line in lines]
        good = [entry for entry in entries if entry is not None]
        self.malformed += len(entries) - len(good)
        return good


def tail_offset(file: BinaryIO, count: int) -> int:
    """Return the offset of the last `count` lines of output. Reads only as much of the file's end as needed."""
    found, seen = 0, set[str]()
    for after, line in _backwards(file):
        entry = parse_entry(line)
        # The newest line of a stream may be in parts, and may never get its newline; it counts as a line.
        if entry is not None and (not entry.partial or entry.stream not in seen):
            seen.add(entry.stream)
            found += 1
            if found > count:
                return after
    return 0


def _backwards(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the complete lines of the file, last one first, each with the offset after it."""
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
    """A log, read to its present end and, after `wait`, further, through rotations by rename.

    A context manager. Raises LogUnreadable if the file does not exist.
    """

    def __init__(self, path: Path, tail: int | None = None) -> None:
        self._path = path
        self._decoder = Decoder()
        with ExitStack() as undo:
            try:
                # Watch before the first read, so that no growth is missed in between.
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
        """Number of lines so far that were not in the CRI format."""
        return self._decoder.malformed

    def read(self) -> Iterator[Entry]:
        """Yield the entries written since the last call."""
        yield from self._drain()
        while (successor := self._successor()) is not None:
            # The old file was written to until the new one existed: read its rest first.
            yield from self._drain()
            self._file.close()
            self._file = successor
            yield from self._drain()

    def wait(self, timeout: float) -> None:
        """Wait for a change in the log's directory, at most `timeout` seconds."""
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
    """Open a log. It must be a regular file: a pod that can write to the directory may put a link or pipe there."""
    return os.fdopen(open_to_read(str(path.absolute())), "rb", buffering=0)
