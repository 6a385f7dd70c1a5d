"""One recording: the latest entries of a pod or an image, up to a limit of bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

import msgspec

from pods.recorder.entry import Counted, Entry, Line, Step, Steps, cut, decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

_COUNTED: Final = 16  # different counted entries
_STEPS: Final = 4  # steps may keep 1/4 of the limit when space is short
_PENDING: Final = 64  # entries that may wait to be encoded
_NAMES: Final = 64


class Subject(msgspec.Struct, frozen=True, array_like=True):
    """The subject of a recording: a pod, with all its attempts, or an image by its full name (`namespace` is "")."""

    namespace: str
    name: str
    uid: str = ""

    @property
    def is_image(self) -> bool:
        return not self.namespace and not self.uid

    def __str__(self) -> str:
        return self.name if self.is_image else f"{self.namespace}/{self.name}"


class Recording:
    """Two rings of lines: steps, and everything else.

    Steps are the most frequent, and are dropped first: errors are worth more than durations. Entries are encoded later,
    in batches, so that `add` is fast. The lines that wait to be written are bounded, too: a disk may hang. Nothing here
    raises.
    """

    __slots__ = (
        "_anew", "_changed", "_counted", "_counted_lines", "_heard", "_limit", "_lines", "_names", "_pending", "_size",
        "_steps", "_steps_size", "_unwritten", "_unwritten_size", "ids", "last", "living", "on_disk", "sandboxes",
        "subject",
    )  # fmt: skip

    def __init__(
        self,
        subject: Subject,
        limit: int,
        changed: Callable[[Recording], None],
        heard: Callable[[Subject, Entry], None] | None = None,
    ) -> None:
        """`limit`: bytes to keep, 0 for none.

        `changed` is called when there is something to write, `heard` for each entry except steps.
        """
        self.subject = subject
        self.sandboxes: set[str] = set()  # ids of existing sandboxes; a pod without any is gone
        self.ids: dict[str, str] = {}  # container ids with names, sandbox ids with ""
        self.living: set[str] = set()  # ids of existing containers
        self.on_disk = 0  # bytes of the file
        self.last = 0  # time of the last entry
        self._limit = limit
        self._changed = changed
        self._heard = heard
        self._lines: deque[bytes] = deque()
        self._steps: deque[bytes] = deque()
        self._steps_size = 0
        self._names: set[str] = set()
        self._counted: dict[tuple[object, ...], Counted] = {}
        self._counted_lines: dict[tuple[object, ...], bytes] = {}
        self._size = 0
        self._pending: list[Line] = []
        self._unwritten: list[bytes] = []
        self._unwritten_size = 0
        self._anew = False  # whether the file must be rewritten

    def add(self, entry: Line) -> None:
        """Add an entry, or count it if it repeats an earlier one."""
        if not self._limit:
            return
        self.last = entry.at
        self._pending.append(entry)
        if len(self._pending) == 1:
            self._changed(self)
        elif len(self._pending) >= _PENDING:
            self._settle()
        if self._heard is not None and not isinstance(entry, Step | Steps):
            self._heard(self.subject, entry)

    def step(self, about: str, operation: str, name: str, at: int, took: int) -> None:
        """Add a step. It joins the line of the step before, if nothing came between them."""
        last = self._pending[-1] if self._pending else None
        if type(last) is Steps and last.operation == operation and last.about == about:
            last.steps.append((at, name, took))
            self.last = at
        else:
            self.add(Steps(at, about, operation, [(at, name, took)]))

    def entries(self) -> list[Entry]:
        """Return all entries, in the order of time; steps one by one."""
        self._settle()
        found: list[Entry] = []
        for line in (*self._lines, *self._steps):
            if (entry := decode(line)) is not None:
                found += entry.each() if isinstance(entry, Steps) else (entry,)
        return sorted([*found, *self._counted.values()], key=lambda entry: entry.at)

    def load(self, lines: Iterable[bytes]) -> None:
        """Load a file's lines; the last line of a counted entry is the valid one."""
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
        """Return the lines that are not on disk; they count as written from now on."""
        self._settle()
        written = b"".join(self._unwritten)
        self._forget_unwritten()
        return written

    def whole(self) -> bytes:
        """Return all lines, to rewrite the file; they count as written from now on."""
        self._settle()
        self._forget_unwritten()
        self._anew = False
        return b"".join(self._all())

    def spoil(self) -> None:
        """Note that the file is incomplete: it ends in half a line, or lacks lines that count as written."""
        self._anew = True

    @property
    def is_spoiled(self) -> bool:
        """Tell whether the file must be rewritten."""
        self._settle()
        return self._anew

    @property
    def names(self) -> set[str]:
        """Return the names of the containers with entries; "" is the pod itself."""
        self._settle()
        return self._names

    @property
    def size(self) -> int:
        """Return the size of all lines, in bytes."""
        self._settle()
        return self._size

    def _all(self) -> Iterator[bytes]:
        yield from self._lines
        yield from self._steps
        yield from self._counted_lines.values()

    def _settle(self) -> None:
        """Encode the pending entries; each counted entry once."""
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
        if len(self._names) > _NAMES:  # failed calls may contain any name
            self._names = {*self.ids.values(), *(entry.about for entry in self.entries())}

    def _is_unwritten(self, line: bytes) -> None:
        self._unwritten.append(line)
        self._unwritten_size += len(line)
        if self._unwritten_size > self._limit:
            self._forget_unwritten()
            self._anew = True

    def _forget_unwritten(self) -> None:
        self._unwritten, self._unwritten_size = [], 0

    def _append_line(self, entry: Line, line: bytes) -> None:
        self._size += len(line)
        if isinstance(entry, Step | Steps):
            self._steps.append(line)
            self._steps_size += len(line)
        else:
            self._lines.append(line)

    def _count(self, key: tuple[object, ...], entry: Line, earlier: Counted | None) -> Counted:
        assert isinstance(entry, Counted)
        earlier = earlier or self._counted.get(key)
        first, count = (entry.at, 1) if earlier is None else (earlier.first, earlier.count + 1)
        return msgspec.structs.replace(entry, first=first, count=count)

    def _put(self, key: tuple[object, ...], entry: Counted, line: bytes) -> None:
        self._size -= len(self._counted_lines.pop(key, b""))
        self._counted.pop(key, None)  # keeps the dict in the order of the latest use
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
    """Return the subject of an image's recording."""
    return Subject("", cut(name))
