"""Tells listeners the cause of each trouble when it happens, and counts causes by name, for events and metrics."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Final
from weakref import WeakSet

from pods.diagnosis import causes, troubles
from pods.errors import PodError, Unavailable
from pods.recorder.entry import Entry, Left, Life, Ran, Refused, Said, Wrote, encodable
from pods.recorder.recording import Subject
from pods.state.events import Listener

_CONTEXTS: Final = 4096  # containers of which the entries before an exit are kept
_CONTEXT: Final = 4  # entries

# A name of each cause: the label of the metric has no other value.
NAMES: Final = frozenset({known.name for known in causes.KNOWN} | causes.OTHERS - {"none"})


@dataclass(frozen=True, slots=True)
class Bulletin:
    """One trouble. `at` is nanoseconds since the epoch, `container` "" for the pod or image itself."""

    at: int
    subject: str
    container: str
    object_id: str
    name: str
    cause: str
    remedy: str


class Bulletins:
    """The listeners and the counts. It hears of each entry that the recorder gets."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys(NAMES, 0))
        self._contexts: dict[tuple[Subject, str], deque[Entry]] = {}
        self._listeners: WeakSet[Listener[Bulletin]] = WeakSet()
        self._closed: PodError | None = None

    def listen(self) -> Listener[Bulletin]:
        """Return a new listener, which gets every bulletin after this call."""
        listener: Listener[Bulletin] = Listener()
        if self._closed:
            listener.fail(self._closed)
        else:
            self._listeners.add(listener)
        return listener

    def close(self) -> None:
        """End all listeners, present and future: crispd stops."""
        self._closed = Unavailable("listen for causes: crispd is stopping")
        for listener in list(self._listeners):
            listener.fail(self._closed)
        self._listeners.clear()

    def hear(self, subject: Subject, entry: Entry) -> None:
        """Take an entry of a recording."""
        match entry:
            case Said(level="error") | Refused() | Left():
                self._judge(subject, entry, ())
            case Ran() if entry.code:
                self._judge(subject, entry, ())
            case Said() | Wrote():
                self._keep(subject, entry)
            case Life(event="stopped" | "deleted"):
                before = self._contexts.pop((subject, entry.about), ())
                if entry.event == "stopped":
                    self._judge(subject, entry, before)
                    if not entry.code and entry.about:
                        self._keep(subject, entry)  # the next may be one too many

    def _keep(self, subject: Subject, entry: Said | Wrote | Life) -> None:
        key = subject, entry.about
        context = self._contexts.setdefault(key, deque(maxlen=_CONTEXT))
        context.append(entry)
        if len(self._contexts) > _CONTEXTS:
            del self._contexts[next(iter(self._contexts))]

    def _judge(self, subject: Subject, entry: Entry, before: tuple[Entry, ...] | deque[Entry]) -> None:
        trouble = troubles.worst((*before, entry))
        if trouble is None or trouble.entry is not entry:
            return
        cause = causes.of(trouble)
        if subject.is_image or not (isinstance(entry, Refused) and entry.call == "PullImage"):
            self.counts[cause.name] += 1  # a pull that fails for a pod is in two recordings
        if self._listeners:
            object_id = entry.id if isinstance(entry, Life) else ""
            text = encodable(cause.text)
            told = Bulletin(entry.at, str(subject), entry.about, object_id, cause.name, text, cause.remedy)
            for listener in list(self._listeners):
                if not listener.take(told):
                    self._listeners.discard(listener)
