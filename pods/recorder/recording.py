"""One recording: the last entries of a pod or an image, as many as there is room for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

import msgspec

from pods.recorder.entry import Counted, Entry, Step, cut, decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

_COUNTED: Final = 16  # different entries that are counted
_STEPS: Final = 4  # the part of the room that steps may keep: one of so many


class Subject(msgspec.Struct, frozen=True, array_like=True):
    """What a recording is of: a pod, whose attempts share it, or an image by its full name (`namespace` is "")."""

    namespace: str
    name: str
    uid: str = ""

    @property
    def is_image(self) -> bool:
        return not self.namespace and not self.uid

    def __str__(self) -> str:
        return self.name if self.is_image else f"{self.namespace}/{self.name}"


class Recording:
    """Two rings of lines, of steps and of all else. An entry is encoded when it comes, so that it costs its bytes.

    Steps are the most, and the first to make room: what went wrong is worth more than how long a start's steps took.
    """

    __slots__ = (
        "_changed", "_counted", "_counted_lines", "_limit", "_lines", "_size", "_steps", "_steps_size", "_unwritten",
        "ids", "last", "names", "on_disk", "sandboxes", "subject",
    )  # fmt: skip

    def __init__(self, subject: Subject, limit: int, changed: Callable[[Recording], None]) -> None:
        """`limit` in bytes; `changed` is called with the recording when there is something to write."""
        self.subject = subject
        self.sandboxes: set[str] = set()  # ids of those that there are; a pod without any is gone
        self.ids: dict[str, str] = {}  # of containers with their names, of sandboxes with ""
        self.names: set[str] = set()  # of containers
        self.on_disk = 0  # bytes of the file
        self.last = 0  # time of the last entry
        self._limit = limit
        self._changed = changed
        self._lines: deque[bytes] = deque()
        self._steps: deque[bytes] = deque()
        self._steps_size = 0
        self._counted: dict[tuple[object, ...], Counted] = {}
        self._counted_lines: dict[tuple[object, ...], bytes] = {}
        self._size = 0
        self._unwritten: list[bytes] = []

    def add(self, entry: Entry) -> None:
        """Take an entry in; one that is the same as an earlier one but for its time is counted."""
        self.last = entry.at
        self.names.add(entry.about)
        line = self._count(entry) if entry.key else self._append(entry)
        self._make_room()
        self._unwritten.append(line)
        self._changed(self)

    def entries(self) -> list[Entry]:
        """All that is kept, in the order of time."""
        found = [entry for line in (*self._lines, *self._steps) if (entry := decode(line)) is not None]
        return sorted([*found, *self._counted.values()], key=lambda entry: entry.at)

    def load(self, lines: Iterable[bytes]) -> None:
        """Take in what a file holds; of an entry that was counted the last line is right."""
        for line in lines:
            if (entry := decode(line)) is None:
                continue
            self.last = max(self.last, entry.at)
            self.names.add(entry.about)
            if entry.key:
                self._put(entry.key, entry, line)  # type: ignore[arg-type]
            else:
                self._append_line(entry, line)
        self._make_room()

    def take_unwritten(self) -> bytes:
        """What is not on disk yet; it counts as written from now on."""
        written, self._unwritten = b"".join(self._unwritten), []
        return written

    def whole(self) -> bytes:
        """All lines, for a file that is written anew; they count as written from now on."""
        self._unwritten = []
        return b"".join(self._all())

    @property
    def size(self) -> int:
        """In bytes."""
        return self._size

    def _all(self) -> Iterator[bytes]:
        yield from self._lines
        yield from self._steps
        yield from self._counted_lines.values()

    def _append(self, entry: Entry) -> bytes:
        line = encode(entry)
        self._append_line(entry, line)
        return line

    def _append_line(self, entry: Entry, line: bytes) -> None:
        self._size += len(line)
        if isinstance(entry, Step):
            self._steps.append(line)
            self._steps_size += len(line)
        else:
            self._lines.append(line)

    def _count(self, entry: Entry) -> bytes:
        assert isinstance(entry, Counted)
        earlier = self._counted.get(entry.key)
        first, count = (entry.at, 1) if earlier is None else (earlier.first, earlier.count + 1)
        entry = msgspec.structs.replace(entry, first=first, count=count)
        line = encode(entry)
        self._put(entry.key, entry, line)
        return line

    def _put(self, key: tuple[object, ...], entry: Counted, line: bytes) -> None:
        self._size -= len(self._counted_lines.pop(key, b""))
        self._counted.pop(key, None)  # so that the one which is longest ago is the first
        self._counted[key], self._counted_lines[key] = entry, line
        self._size += len(line)
        if len(self._counted) > _COUNTED:
            self._forget_counted()

    def _make_room(self) -> None:
        while self._size > self._limit and self._steps_size > self._limit // _STEPS:
            gone = len(self._steps.popleft())
            self._steps_size -= gone
            self._size -= gone
        while self._size > self._limit and self._lines:
            self._size -= len(self._lines.popleft())
        while self._size > self._limit and len(self._counted) > 1:
            self._forget_counted()

    def _forget_counted(self) -> None:
        oldest = next(iter(self._counted))
        del self._counted[oldest]
        self._size -= len(self._counted_lines.pop(oldest))


def about_image(name: str) -> Subject:
    """The subject of an image's recording."""
    return Subject("", cut(name))
