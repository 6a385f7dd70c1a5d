"""All recordings of a node: found by pod, sandbox and container; written behind; forgotten after a while.

The recorder is on all the time, so it is cheap: what happens is put into memory, and a quarter of a second later it is
encoded together and one thread writes it. A kill of crispd loses what came in that time. Nothing that the recorder
cannot do (a full disk) fails what it records.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from image.errors import ImageError
from image.reference import parse_reference
from pods.model import SandboxMetadata
from pods.recorder.entry import Answered, Left, Life, Plugin, Ran, Refused, Said, Step, Wrote, cut
from pods.recorder.files import Files
from pods.recorder.recording import Recording, Subject, about_image

_log: Final = logging.getLogger("crisp.recorder")
_DELAY: Final = 0.25  # seconds until what has come is written
_COMMAND: Final = 160  # characters of a command that is counted
_IDS: Final = 64  # of one pod that are known: a container that crashes has many
_NAME: Final = 253  # characters of an object's name; a call that is refused may have told any
_CAUSES: Final = 8  # of an error


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is recorded of one pod, in bytes, and of how many that are gone how much is kept for how long."""

    size: int = 16 << 10
    kept: int = 200
    seconds: float = 86_400


@dataclass(frozen=True, slots=True)
class End:
    """How a container ended; `detail` is what helps to tell why."""

    code: int
    reason: str
    detail: str = ""


class Teller:
    """Puts what happens to one pod, or one container of it, into its recording."""

    __slots__ = ("about", "recording")

    def __init__(self, recording: Recording, about: str = "") -> None:
        self.recording = recording
        self.about = about

    def step(self, operation: str, name: str, begun: int, ended: int) -> None:
        """A step was taken (pods.trace.StepReport)."""
        at = time.time_ns() - (time.monotonic_ns() - ended)
        self.recording.add(Step(at, self.about, operation, name, ended - begun))

    def said(self, text: str, level: str = "info") -> None:
        """Something worth knowing."""
        self.recording.add(Said(time.time_ns(), self.about, level, cut(text)))

    def wrote(self, text: str) -> None:
        """The container's last line was this, and it ended with an error."""
        if text:
            self.recording.add(Wrote(time.time_ns(), self.about, cut(text)))

    def ran(self, command: str, code: int, took: int) -> None:
        """A command ended with that exit code."""
        self.recording.add(Ran(time.time_ns(), self.about, cut(command, _COMMAND), code, took))


class Recorder:
    """Used on one loop, between `open` and `close`."""

    def __init__(self, directory: Path, bounds: Bounds) -> None:
        self._files = Files(directory)
        self._bounds = bounds
        self._recordings: dict[Subject, Recording] = {}
        self._sandboxes: dict[str, Recording] = {}
        self._containers: dict[str, Teller] = {}
        self._dirty: dict[Subject, Recording] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writer = ThreadPoolExecutor(1, "recorder")
        self._writing: Future[None] | None = None
        self._complained = False
        self._failed: set[Subject] = set()  # whose last lines were not written, or in part
        self._listening = _Listening(self)
        self._unknown = Recording(Subject("", ""), 0, lambda _recording: None)
        self._knows_all = False  # the pods that there are

    async def open(self) -> None:
        """Read what an earlier daemon recorded, and listen to the log. A directory that cannot be read is empty."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        try:
            for recording in await asyncio.to_thread(self._read):
                self._recordings[recording.subject] = recording
        except OSError as error:
            self._complain(error)
        for recording in self._recordings.values():
            for entry in recording.entries():
                if isinstance(entry, Life):
                    self._know(recording, entry.id, entry.about)
        logging.getLogger().addHandler(self._listening)

    def close(self) -> None:
        """Write what is not written yet."""
        logging.getLogger().removeHandler(self._listening)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._writer.submit(self._write, self._take())
        self._writer.shutdown()
        self._loop = None  # what is told from now on is not written

    def knows_all(self) -> None:
        """All pods that there are have been found again: those of other recordings are gone."""
        self._knows_all = True

    # -- finding ------------------------------------------------------------------------------------------------------

    def recordings(self) -> Iterator[Recording]:
        """All of them, those of pods that are gone too."""
        return iter(self._recordings.values())

    def of_pod(self, pod: SandboxMetadata) -> Teller:
        """The pod's, whatever there is of the pod so far."""
        return Teller(self._of(_subject(pod.namespace, pod.name, pod.uid)))

    def of_image(self, name: str) -> Teller:
        """An image's, by its full name."""
        with contextlib.suppress(ImageError):
            name = parse_reference(name).name
        return Teller(self._of(about_image(name)))

    def of_sandbox(self, sandbox_id: str) -> Teller | None:
        """The recording of that sandbox's pod."""
        recording = self._sandboxes.get(sandbox_id)
        return None if recording is None else Teller(recording)

    def of_container(self, container_id: str) -> Teller | None:
        """The part of its pod's recording that is about the container."""
        return self._containers.get(container_id)

    def within(self, sandbox_id: str, container: str) -> Teller:
        """What is told of a container that is not there yet. Of a pod that is not known nothing is kept."""
        found = self.of_sandbox(sandbox_id)
        return Teller(self._unknown if found is None else found.recording, container)

    def part(self, container_id: str) -> Teller:
        """The container's. Of one that is not known nothing is kept."""
        return self.of_container(container_id) or Teller(self._unknown)

    def teller(self, container: str, sandbox: str) -> Teller | None:
        """The container's, or that of its pod while it is not known."""
        return self.of_container(container) or self.of_sandbox(sandbox)

    # -- telling ------------------------------------------------------------------------------------------------------

    def sandbox(self, sandbox_id: str, pod: SandboxMetadata, event: str) -> None:
        """A sandbox of that pod was begun, created, started, stopped, or deleted."""
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
        """There is a sandbox of that pod from an earlier daemon."""
        recording = self._sandboxes[sandbox_id] = self._of(_subject(pod.namespace, pod.name, pod.uid))
        recording.sandboxes.add(sandbox_id)
        self._know(recording, sandbox_id, "")
        recording.add(Said(time.time_ns(), "", "info", "crispd has started again"))

    def container(self, sandbox_id: str, container_id: str, name: str, event: str, end: End | None = None) -> None:
        """The same of a container, with how it ended if it has."""
        if (recording := self._sandboxes.get(sandbox_id)) is not None:
            (recording.living.discard if event == "deleted" else recording.living.add)(container_id)
            self._know(recording, container_id, name)
            if event:
                code, reason, detail = (0, "", "") if end is None else (end.code, end.reason, end.detail)
                recording.add(Life(time.time_ns(), name, container_id, event, code, reason, detail))

    def undone(self, sandbox_id: str) -> None:
        """A sandbox that never was in the lists is gone again."""
        if (recording := self._sandboxes.pop(sandbox_id, None)) is not None:
            recording.sandboxes.discard(sandbox_id)
            recording.add(Life(time.time_ns(), "", sandbox_id, "undone"))

    def plugin(self, sandbox_id: str, command: str, name: str, took: int, failure: str) -> None:
        """A network plugin was run for a sandbox, which took so many nanoseconds."""
        if (recording := self._sandboxes.get(sandbox_id)) is not None:
            recording.add(Plugin(time.time_ns(), "", command, name, took, cut(failure)))

    def refused(
        self, call: str, about: Mapping[str, str], code: str, text: str, error: BaseException, seconds: float
    ) -> None:
        """A call about these objects (cri.subject) was answered with `text` because of an error."""
        kinds = tuple(type(one).__name__ for one in islice(_chain(error), _CAUSES))
        text, took = cut(text), int(seconds * 1e9)
        for teller in self._tellers(about):
            teller.recording.add(Refused(time.time_ns(), teller.about, call, code, kinds, text, took))

    def answered(self, call: str, about: Mapping[str, str], seconds: float) -> None:
        """The call has succeeded."""
        for teller in self._tellers(about):
            teller.recording.add(Answered(time.time_ns(), teller.about, call, int(seconds * 1e9)))

    def left(self, call: str, about: Mapping[str, str], seconds: float) -> None:
        """The caller of such a call has gone away."""
        for teller in self._tellers(about):
            teller.recording.add(Left(time.time_ns(), teller.about, call, int(seconds * 1e9)))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _of(self, subject: Subject) -> Recording:
        recording = self._recordings.get(subject)
        if recording is None:
            recording = self._recordings[subject] = Recording(subject, self._bounds.size, self._changed)
            recording.last = time.time_ns()  # so that it is not forgotten before there is anything in it
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
        """Of what a call or a line of the log is about: the container or pod, and the image."""
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
        """Take in a line of the log that names a pod or a container."""
        about = {name: value for name in ("container", "sandbox", "pod") if (value := getattr(record, name, ""))}
        if about:
            text = record.getMessage()
            if error := getattr(record, "error", ""):
                text = f"{text}: {error}"
            for teller in self._tellers(about):
                teller.said(text, record.levelname.lower())

    def listen(self, record: logging.LogRecord) -> None:
        """The same from any thread."""
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
            return  # it was forgotten, and its file is removed
        self._dirty[recording.subject] = recording
        if self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(_DELAY, self._write_behind)

    def _write_behind(self) -> None:
        """On the loop: hand what has come to the thread, unless that is still at the last."""
        self._timer = None
        if self._writing is not None and not self._writing.done():
            assert self._loop is not None
            self._timer = self._loop.call_later(_DELAY, self._write_behind)
            return
        self._forget_old()
        self._writing = self._writer.submit(self._write, self._take())

    def _take(self) -> list[_Write]:
        """On the loop: what is to be written."""
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
        """In the thread."""
        for subject, lines, anew in writes:
            try:
                if anew:
                    self._files.replace(subject, lines)
                else:
                    self._files.append(subject, lines)
            except OSError as error:
                self._failed.add(subject)
                self._complain(error)

    def _read(self) -> list[Recording]:
        """In another thread: the recordings of an earlier daemon."""
        self._files.prepare()
        found = []
        for subject, lines, size in self._files.read():
            recording = Recording(subject, self._bounds.size, self._changed)
            recording.load(lines)
            recording.on_disk = size
            if lines and not lines[-1].endswith(b"\n"):
                recording.spoil()  # what is added would be a part of the torn line
            found.append(recording)
        return found

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            _log.warning("recordings are not written (said once)", extra={"error": error})

    def _forget_old(self) -> None:
        """Forget recordings of what is gone that are too many or too old. Not before it is known what there is."""
        gone = [recording for recording in self._recordings.values() if not recording.sandboxes]
        if not gone or not self._knows_all:
            return
        now = time.time_ns()
        for recording in gone:
            recording.last = min(recording.last, now)  # the clock was ahead: it would never be old
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
        self._writer.submit(self._remove, recording)

    def _remove(self, recording: Recording) -> None:
        with contextlib.suppress(OSError):
            self._files.remove(recording.subject)


_Write = tuple[Subject, bytes, bool]  # lines to add, or all that there are to be


class _Listening(logging.Handler):
    """The lines of the log that warn of something and name a pod are in its recording."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(logging.WARNING)
        self._recorder = recorder

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._recorder.listen(record)
        except Exception:  # as every handler: who logs is not to fail of it
            self.handleError(record)


def _subject(namespace: str, name: str, uid: str) -> Subject:
    return Subject(cut(namespace, _NAME), cut(name, _NAME), cut(uid, _NAME))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was made of."""
    while error is not None:
        yield error
        error = error.__cause__
