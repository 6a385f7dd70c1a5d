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
_PENDING: Final = 64  # entries that are not encoded yet
_NAMES: Final = 64


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
    """Two rings of lines, of steps and of all else.

    Steps are the most, and the first to make room: what went wrong is worth more than how long a start's steps took.
    Entries are encoded together, later than they come: whoever tells must not wait for that. What waits to be written
    is bounded, too: a disk may hang. Nothing here raises.
    """

    __slots__ = (
        "_anew", "_changed", "_counted", "_counted_lines", "_limit", "_lines", "_names", "_pending", "_size",
        "_steps", "_steps_size", "_unwritten", "_unwritten_size", "ids", "last", "living", "on_disk", "sandboxes",
        "subject",
    )  # fmt: skip

    def __init__(self, subject: Subject, limit: int, changed: Callable[[Recording], None]) -> None:
        """`limit` in bytes, 0 to keep nothing; `changed` is called when there is something to write."""
        self.subject = subject
        self.sandboxes: set[str] = set()  # ids of those that there are; a pod without any is gone
        self.ids: dict[str, str] = {}  # of containers with their names, of sandboxes with ""
        self.living: set[str] = set()  # ids of containers that there are
        self.on_disk = 0  # bytes of the file
        self.last = 0  # time of the last entry
        self._limit = limit
        self._changed = changed
        self._lines: deque[bytes] = deque()
        self._steps: deque[bytes] = deque()
        self._steps_size = 0
        self._names: set[str] = set()
        self._counted: dict[tuple[object, ...], Counted] = {}
        self._counted_lines: dict[tuple[object, ...], bytes] = {}
        self._size = 0
        self._pending: list[Entry] = []
        self._unwritten: list[bytes] = []
        self._unwritten_size = 0
        self._anew = False  # whether what is on disk is not what was written

    def add(self, entry: Entry) -> None:
        """Take an entry in; one that is the same as an earlier one but for its time is counted."""
        if not self._limit:
            return
        self.last = entry.at
        self._pending.append(entry)
        if len(self._pending) == 1:
            self._changed(self)
        elif len(self._pending) >= _PENDING:
            self._settle()

    def entries(self) -> list[Entry]:
        """All that is kept, in the order of time."""
        self._settle()
        found = [entry for line in (*self._lines, *self._steps) if (entry := decode(line)) is not None]
        return sorted([*found, *self._counted.values()], key=lambda entry: entry.at)

    def load(self, lines: Iterable[bytes]) -> None:
        """Take in what a file holds; of an entry that was counted the last line is right."""
        for line in lines:
            if (entry := decode(line)) is None:
                continue
            self.last = max(self.last, entry.at)
            self._names.add(entry.about)
            if entry.key:
                self._put(entry.key, entry, line)  # type: ignore[arg-type]
            else:
                self._append_line(entry, line)
        self._make_room()

    def take_unwritten(self) -> bytes:
        """What is not on disk yet; it counts as written from now on."""
        self._settle()
        written = b"".join(self._unwritten)
        self._forget_unwritten()
        return written

    def whole(self) -> bytes:
        """All lines, for a file that is written anew; they count as written from now on."""
        self._settle()
        self._forget_unwritten()
        self._anew = False
        return b"".join(self._all())

    def spoil(self) -> None:
        """The file is torn, or lacks something that counts as written."""
        self._anew = True

    @property
    def is_spoiled(self) -> bool:
        """Whether the file has to be written anew."""
        self._settle()
        return self._anew

    @property
    def names(self) -> set[str]:
        """Of the containers that it tells of; "" is the pod's own."""
        self._settle()
        return self._names

    @property
    def size(self) -> int:
        """In bytes."""
        self._settle()
        return self._size

    def _all(self) -> Iterator[bytes]:
        yield from self._lines
        yield from self._steps
        yield from self._counted_lines.values()

    def _settle(self) -> None:
        """Encode what has come since the last time; of what is counted once each."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        counted: dict[tuple[object, ...], Counted] = {}
        for entry in pending:
            self._names.add(entry.about)
            if key := entry.key:
                counted[key] = self._count(key, entry, counted.get(key))
            else:
                line = encode(entry)
                self._append_line(entry, line)
                self._is_unwritten(line)
        for key, entry in counted.items():
            line = encode(entry)
            self._put(key, entry, line)
            self._is_unwritten(line)
        self._make_room()
        if len(self._names) > _NAMES:  # calls that are refused may tell any
            self._names = {*self.ids.values(), *(entry.about for entry in self.entries())}

    def _is_unwritten(self, line: bytes) -> None:
        self._unwritten.append(line)
        self._unwritten_size += len(line)
        if self._unwritten_size > self._limit:
            self._forget_unwritten()
            self._anew = True

    def _forget_unwritten(self) -> None:
        self._unwritten, self._unwritten_size = [], 0

    def _append_line(self, entry: Entry, line: bytes) -> None:
        self._size += len(line)
        if isinstance(entry, Step):
            self._steps.append(line)
            self._steps_size += len(line)
        else:
            self._lines.append(line)

    def _count(self, key: tuple[object, ...], entry: Entry, earlier: Counted | None) -> Counted:
        assert isinstance(entry, Counted)
        earlier = earlier or self._counted.get(key)
        first, count = (entry.at, 1) if earlier is None else (earlier.first, earlier.count + 1)
        return msgspec.structs.replace(entry, first=first, count=count)

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
