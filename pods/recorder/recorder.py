"""Keeps all recordings of a node, by pod, sandbox and container. Writes them in the background, and deletes old ones.

The recorder is always on, so it must be cheap: events are kept in memory, and a thread writes them a quarter of a
second later. A kill of crispd loses the events of that time. A failure of the recorder (a full disk) never fails an
operation.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

from image.errors import ImageError
from image.reference import parse_reference
from pods.model import SandboxMetadata
from pods.recorder.entry import CLUE, Answered, Entry, Left, Life, Plugin, Ran, Refused, Said, Wrote, cut
from pods.recorder.files import Files
from pods.recorder.recording import Recording, Subject, about_image
from pods.recorder.writer import Writer

_log: Final = logging.getLogger("crisp.recorder")
_DELAY: Final = 0.25  # seconds between an event and its write
_COMMAND: Final = 160  # characters of a command that are kept
_IDS: Final = 64  # ids kept for each pod: a crashing container gets many
_NAME: Final = 253  # characters of a name; a failed call may contain any name
_CAUSES: Final = 8  # of an error, that are recorded


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits: bytes for each pod; how many recordings of removed pods are kept, and for how many seconds."""

    size: int = 16 << 10
    kept: int = 200
    seconds: float = 86_400


@dataclass(frozen=True, slots=True)
class End:
    """A container's exit code and reason; `detail` helps to find the cause."""

    code: int
    reason: str
    detail: str = ""


class Teller:
    """Adds entries about one pod, or one of its containers, to the recording."""

    __slots__ = ("about", "recording")

    def __init__(self, recording: Recording, about: str = "") -> None:
        self.recording = recording
        self.about = about

    def step(self, operation: str, name: str, begun: int, ended: int) -> None:
        """Record a completed step (pods.trace.StepReport)."""
        at = time.time_ns() - (time.monotonic_ns() - ended)
        self.recording.step(self.about, operation, name, at, ended - begun)

    def said(self, text: str, level: str = "info") -> None:
        """Record a remark."""
        self.recording.add(Said(time.time_ns(), self.about, level, cut(text)))

    def clue(self, text: str) -> None:
        """Record what was found out about a container's end, unless it is nothing. The end comes after it."""
        if text:
            self.said(f"{CLUE}{text}")

    def wrote(self, text: str) -> None:
        """Record the last output lines of a container that ended with an error."""
        if text:
            self.recording.add(Wrote(time.time_ns(), self.about, cut(text)))

    def ran(self, command: str, code: int, took: int, words: str = "") -> None:
        """Record a command's exit code, and the last line that it wrote."""
        command, words = cut(command, _COMMAND), cut(words)
        self.recording.add(Ran(time.time_ns(), self.about, command, code, took, words=words))


class Recorder:
    """The recordings of a node. Use it on one event loop, between `open` and `close`."""

    def __init__(
        self, directory: Path, bounds: Bounds, heard: Callable[[Subject, Entry], None] | None = None
    ) -> None:
        """`heard` is called for each new entry except steps."""
        self._files = Files(directory)
        self._bounds = bounds
        self._heard = heard
        self._recordings: dict[Subject, Recording] = {}
        self._sandboxes: dict[str, Recording] = {}
        self._containers: dict[str, Teller] = {}
        self._dirty: dict[Subject, Recording] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writer = Writer()
        self._complained = False
        self._failed: set[Subject] = set()  # those whose last write failed
        self._listening = _Listening(self)
        self._unknown = Recording(Subject("", ""), 0, lambda _recording: None)
        self._knows_all = False  # whether all existing pods are known

    async def open(self) -> None:
        """Load the recordings of an earlier daemon, and attach to the log. An unreadable directory counts as empty."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        try:
            for recording, lives in await asyncio.to_thread(self._read):
                self._recordings[recording.subject] = recording
                for life in lives:
                    self._know(recording, life.id, life.about)
        except OSError as error:
            self._complain(error)
        logging.getLogger().addHandler(self._listening)

    def close(self) -> None:
        """Write all remaining entries, unless the disk hangs."""
        logging.getLogger().removeHandler(self._listening)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._writer.submit(partial(self._write, self._take()))
        if not self._writer.close():
            _log.warning("the recorder's disk does not answer; crisp why may lack the last entries")
        self._loop = None  # later entries are not written

    def knows_all(self) -> None:
        """Note that all existing pods are known: the pods of other recordings are gone."""
        self._knows_all = True

    # -- finding ------------------------------------------------------------------------------------------------------

    def recordings(self) -> Iterator[Recording]:
        """Return all recordings, also those of removed pods."""
        return iter(self._recordings.values())

    def of_pod(self, pod: SandboxMetadata) -> Teller:
        """Return the teller of a pod, which need not exist yet."""
        return Teller(self._of(_subject(pod.namespace, pod.name, pod.uid)))

    def of_image(self, name: str) -> Teller:
        """Return the teller of an image, by its name."""
        with contextlib.suppress(ImageError):
            name = parse_reference(name).name
        return Teller(self._of(about_image(name)))

    def of_sandbox(self, sandbox_id: str) -> Teller | None:
        """Return the teller of the sandbox's pod, or None."""
        recording = self._sandboxes.get(sandbox_id)
        return None if recording is None else Teller(recording)

    def of_container(self, container_id: str) -> Teller | None:
        """Return the teller of a container, or None."""
        return self._containers.get(container_id)

    def within(self, sandbox_id: str, container: str) -> Teller:
        """Return the teller of a container that does not exist yet. It records nothing if the pod is unknown."""
        found = self.of_sandbox(sandbox_id)
        return Teller(self._unknown if found is None else found.recording, container)

    def part(self, container_id: str) -> Teller:
        """Return the teller of a container. It records nothing if the container is unknown."""
        return self.of_container(container_id) or Teller(self._unknown)

    def teller(self, container: str, sandbox: str) -> Teller | None:
        """Return the teller of the container, or of its pod if the container is unknown."""
        return self.of_container(container) or self.of_sandbox(sandbox)

    # -- telling ------------------------------------------------------------------------------------------------------

    def sandbox(self, sandbox_id: str, pod: SandboxMetadata, event: str) -> None:
        """Record that a sandbox of this pod was begun, created, started, stopped, or deleted."""
        recording = self._of(_subject(pod.namespace, pod.name, pod.uid))
        self._know(recording, sandbox_id, "")
        if event == "deleted":
            recording.sandboxes.discard(sandbox_id)
            self._sandboxes.pop(sandbox_id, None)
        else:
            recording.sandboxes.add(sandbox_id)
            self._sandboxes[sandbox_id] = recording
        recording.add(Life(time.time_ns(), "", sandbox_id, event))

    def found_again(self, sandbox_id: str, pod: SandboxMetadata) -> None:
        """Record that this daemon has taken over a sandbox from an earlier one."""
        recording = self._sandboxes[sandbox_id] = self._of(_subject(pod.namespace, pod.name, pod.uid))
        recording.sandboxes.add(sandbox_id)
        self._know(recording, sandbox_id, "")
        recording.add(Said(time.time_ns(), "", "info", "crispd has started again"))

    def container(self, sandbox_id: str, container_id: str, name: str, event: str, end: End | None = None) -> None:
        """Record the same events of a container, with its exit if it has ended."""
        if (recording := self._sandboxes.get(sandbox_id)) is not None:
            (recording.living.discard if event == "deleted" else recording.living.add)(container_id)
            self._know(recording, container_id, name)
            if event:
                code, reason, detail = (0, "", "") if end is None else (end.code, end.reason, end.detail)
                recording.add(Life(time.time_ns(), name, container_id, event, code, reason, detail))

    def undone(self, sandbox_id: str) -> None:
        """Record the rollback of a sandbox that was never in the lists."""
        if (recording := self._sandboxes.pop(sandbox_id, None)) is not None:
            recording.sandboxes.discard(sandbox_id)
            recording.add(Life(time.time_ns(), "", sandbox_id, "undone"))

    def plugin(self, sandbox_id: str, command: str, name: str, took: int, failure: str) -> None:
        """Record a run of a network plugin for a sandbox; it took `took` nanoseconds."""
        if (recording := self._sandboxes.get(sandbox_id)) is not None:
            recording.add(Plugin(time.time_ns(), "", command, name, took, cut(failure)))

    def refused(
        self, call: str, about: Mapping[str, str], code: str, text: str, error: BaseException, seconds: float
    ) -> None:
        """Record a call about these objects (cri.subject) that failed with `error`; the client got `text`."""
        kinds = tuple(type(one).__name__ for one in islice(_chain(error), _CAUSES))
        text, took = cut(text), int(seconds * 1e9)
        for teller in self._tellers(about):
            teller.recording.add(Refused(time.time_ns(), teller.about, call, code, kinds, text, took))

    def answered(self, call: str, about: Mapping[str, str], seconds: float) -> None:
        """Record a call that succeeded."""
        for teller in self._tellers(about):
            teller.recording.add(Answered(time.time_ns(), teller.about, call, int(seconds * 1e9)))

    def left(self, call: str, about: Mapping[str, str], seconds: float) -> None:
        """Record a call whose caller disconnected."""
        for teller in self._tellers(about):
            teller.recording.add(Left(time.time_ns(), teller.about, call, int(seconds * 1e9)))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _of(self, subject: Subject) -> Recording:
        recording = self._recordings.get(subject)
        if recording is None:
            recording = self._recordings[subject] = Recording(subject, self._bounds.size, self._changed, self._heard)
            recording.last = time.time_ns()  # so that it is not forgotten while it is empty
        return recording

    def _know(self, recording: Recording, object_id: str, name: str) -> None:
        if object_id in recording.ids:
            return
        recording.ids[object_id] = name
        if name:
            self._containers[object_id] = Teller(recording, name)
        if len(recording.ids) > _IDS:
            there = recording.living | recording.sandboxes
            if (oldest := next((known for known in recording.ids if known not in there), None)) is not None:
                del recording.ids[oldest]
                self._containers.pop(oldest, None)

    def _tellers(self, about: Mapping[str, object]) -> Iterator[Teller]:
        """Yield the tellers of the objects in a call or log line: the container or pod, and the image."""
        container, sandbox, pod = (str(about.get(name, "")) for name in ("container", "sandbox", "pod"))
        namespace, _, rest = pod.partition("/")
        if (found := self.teller(container, sandbox)) is not None:
            yield Teller(found.recording, found.about or cut(str(about.get("container_name", "")), _NAME))
        elif rest.count("/") >= 2:
            name, uid, _attempt = rest.rsplit("/", 2)
            yield Teller(self._of(_subject(namespace, name, uid)))
        if (image := str(about.get("image", ""))) and not container and not sandbox:
            yield self.of_image(image)

    def hear(self, record: logging.LogRecord) -> None:
        """Record a line of the log that names a pod or a container."""
        about = {name: value for name in ("container", "sandbox", "pod") if (value := getattr(record, name, ""))}
        if about:
            text = record.getMessage()
            if error := getattr(record, "error", ""):
                text = f"{text}: {error}"
            for teller in self._tellers(about):
                teller.said(text, record.levelname.lower())

    def listen(self, record: logging.LogRecord) -> None:
        """Do the same as `hear`, from any thread."""
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        if threading.get_ident() == self._thread:
            self.hear(record)
        else:
            loop.call_soon_threadsafe(self.hear, record)

    # -- the disk -----------------------------------------------------------------------------------------------------

    def _changed(self, recording: Recording) -> None:
        if self._recordings.get(recording.subject) is not recording:
            return  # it is forgotten, and its file removed
        self._dirty[recording.subject] = recording
        if self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(_DELAY, self._write_behind)

    def _write_behind(self) -> None:
        """On the loop: pass pending entries to the thread, unless it is still writing."""
        self._timer = None
        if self._writer.busy:
            assert self._loop is not None
            self._timer = self._loop.call_later(_DELAY, self._write_behind)
            return
        self._forget_old()
        self._writer.submit(partial(self._write, self._take()))

    def _take(self) -> list[_Write]:
        """On the loop: collect what must be written."""
        dirty, self._dirty = list(self._dirty.values()), {}
        return [self._take_of(recording) for recording in dirty]

    def _take_of(self, recording: Recording) -> _Write:
        if recording.subject in self._failed:
            self._failed.discard(recording.subject)
            recording.spoil()
        anew = recording.is_spoiled
        lines = recording.whole() if anew else recording.take_unwritten()
        if not anew and recording.on_disk + len(lines) > 2 * self._bounds.size:
            lines, anew = recording.whole(), True
        recording.on_disk = len(lines) + (0 if anew else recording.on_disk)
        return recording.subject, lines, anew

    def _write(self, writes: list[_Write]) -> None:
        """In the thread: write to the files."""
        for subject, lines, anew in writes:
            try:
                if anew:
                    self._files.replace(subject, lines)
                else:
                    self._files.append(subject, lines)
            except OSError as error:
                self._failed.add(subject)
                self._complain(error)

    def _read(self) -> list[tuple[Recording, list[Life]]]:
        """In another thread: read the recordings of an earlier daemon, each with what names its pods' objects."""
        self._files.prepare()
        found = []
        for subject, lines, size in self._files.read():
            recording = Recording(subject, self._bounds.size, self._changed, self._heard)
            recording.load(lines)
            recording.on_disk = size
            if lines and not lines[-1].endswith(b"\n"):
                recording.spoil()  # an appended line would join the incomplete one
            found.append((recording, [entry for entry in recording.entries() if isinstance(entry, Life)]))
        return found

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            _log.warning("writing a recording failed (logged once); crisp why may lack entries", extra={"error": error})

    def _forget_old(self) -> None:
        """Forget recordings of removed pods that are too many or too old, once all existing pods are known."""
        gone = [recording for recording in self._recordings.values() if not recording.sandboxes]
        if not gone or not self._knows_all:
            return
        now = time.time_ns()
        for recording in gone:
            recording.last = min(recording.last, now)  # the clock was ahead: otherwise it would never be old
        oldest = now - int(self._bounds.seconds * 1e9)
        gone.sort(key=lambda recording: recording.last, reverse=True)
        for number, recording in enumerate(gone):
            if number >= self._bounds.kept or recording.last < oldest:
                self._forget(recording)

    def _forget(self, recording: Recording) -> None:
        del self._recordings[recording.subject]
        self._dirty.pop(recording.subject, None)
        for object_id in recording.ids:
            self._containers.pop(object_id, None)
        self._writer.submit(partial(self._remove, recording))

    def _remove(self, recording: Recording) -> None:
        with contextlib.suppress(OSError):
            self._files.remove(recording.subject)


_Write = tuple[Subject, bytes, bool]  # the lines; True: they replace the file


class _Listening(logging.Handler):
    """Adds the log's warnings and errors that name a pod to its recording."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(logging.WARNING)
        self._recorder = recorder

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._recorder.listen(record)
        except Exception:  # like every handler: logging must not fail the caller
            self.handleError(record)


def _subject(namespace: str, name: str, uid: str) -> Subject:
    return Subject(cut(namespace, _NAME), cut(name, _NAME), cut(uid, _NAME))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__
