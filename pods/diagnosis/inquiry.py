"""Answers one question of `crisp why`: finds the recording and its worst trouble, and formats the timeline."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from image.errors import ImageError
from image.reference import parse_reference
from pods.diagnosis import causes, troubles
from pods.errors import InvalidArgument, NotFound
from pods.model import Container, ContainerState
from pods.recorder.entry import (
    CLUE,
    Answered,
    Counted,
    Entry,
    Left,
    Life,
    Plugin,
    Ran,
    Refused,
    Runs,
    Said,
    Step,
    Wrote,
)
from pods.recorder.recording import Recording, Subject

_SHORTEST: Final = 4  # digits of an id
_KINDS: Final[dict[type[Entry], str]] = {
    Step: "step", Refused: "call", Answered: "call", Left: "call", Plugin: "plugin", Life: "life", Said: "log",
    Wrote: "output", Ran: "command", Runs: "command",
}  # fmt: skip
_RECENT: Final = 3_600_000_000_000  # nanoseconds
_WANTED: Final = "stopped"  # the cause of an end that somebody asked for
_OTHERS: Final = 50  # more objects of one name are not told of


@dataclass(frozen=True, slots=True)
class Moment:
    """One line of a timeline. Times are nanoseconds."""

    at: int
    container: str
    text: str
    took: int = 0
    count: int = 1
    wrong: bool = False
    kind: str = ""  # of the entry: "step", "call", "plugin", "life", "log", "output" or "command"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The answer. `name` is "none" if nothing is wrong. `others`: what else the query names, without timelines."""

    subject: str
    name: str
    cause: str
    evidence: str
    remedy: str
    timeline: tuple[Moment, ...]
    others: tuple[Diagnosis, ...] = ()


@dataclass(frozen=True, slots=True)
class Present:
    """What there is now: the containers, and the commands (ExecSync) that run, with their sandboxes' ids."""

    containers: Sequence[Container] = ()
    running: Sequence[tuple[str, Runs]] = ()


def inquire(query: str, recordings: Iterable[Recording], present: Present) -> Diagnosis:
    """Diagnose a pod, container or image. Raises NotFound, InvalidArgument."""
    first, *rest = find(query, list(recordings))
    answer = _diagnose(*first, present)
    others = []
    for recording, name in rest[:_OTHERS]:
        other = replace(_diagnose(recording, name, present), timeline=())
        if other.subject == answer.subject:  # an earlier pod of that name
            other = replace(other, subject=f"{other.subject} (uid {recording.subject.uid})")
        others.append(other)
    return replace(answer, others=tuple(others))


async def survey(recordings: Iterable[Recording], present: Present, *, everything: bool) -> list[Diagnosis]:
    """Diagnose all of a node: existing pods first, then the latest.

    Without `everything`: each pod, container and image with a trouble that nobody wanted, of removed pods those of the
    last hour, without timelines. With it: one diagnosis of each recording.
    """
    since = time.time_ns() - _RECENT
    found: list[Diagnosis] = []
    for recording in sorted(recordings, key=lambda one: (not one.sandboxes, -one.last)):
        if everything:
            found.append(_diagnose(recording, "", present))
        elif recording.sandboxes or recording.last > since:
            open_ones = troubles.of_each(_entries(recording, present), time.time_ns())
            told = (_judged(_subject(recording.subject, one.entry.about), one) for one in open_ones)
            found += [one for one in told if one.name != _WANTED and not _is_told(one, recording, found)]
        await asyncio.sleep(0)  # each takes up to some milliseconds
    return found


def _is_told(one: Diagnosis, recording: Recording, others: Iterable[Diagnosis]) -> bool:
    """Return whether it is of an image, and a pod that waits for that was told of."""
    return recording.subject.is_image and any(one.cause == other.cause for other in others)


def _diagnose(recording: Recording, container: str, present: Present) -> Diagnosis:
    known = _entries(recording, present)
    entries = [entry for entry in known if not container or entry.about in ("", container)]
    subject = _subject(recording.subject, container)
    trouble = troubles.worst(entries, time.time_ns())
    timeline = tuple(moment for entry in entries for moment in _moments(entry))
    if trouble is None:
        return Diagnosis(subject, "none", f"nothing is known to be wrong with {subject}", _last(entries), "-", timeline)
    return replace(_judged(subject, trouble), timeline=timeline)


def _judged(subject: str, trouble: troubles.Trouble) -> Diagnosis:
    cause = causes.of(trouble)
    return Diagnosis(subject, cause.name, cause.text, _evidence(trouble), cause.remedy, ())


def _entries(recording: Recording, present: Present) -> list[Entry]:
    running = [entry for sandbox_id, entry in present.running if sandbox_id in recording.sandboxes]
    containers = [one for one in present.containers if one.sandbox_id in recording.sandboxes]
    return _with_the_present(recording.entries(), running, containers)


def find(query: str, recordings: Sequence[Recording]) -> list[tuple[Recording, str]]:
    """Find recordings by `query`, each with the container in it or "": existing pods first, then the latest.

    Raises NotFound, InvalidArgument.
    """
    if not query:
        raise InvalidArgument("query: must name a pod, a container or an image")
    # Names go first: one such as "cafe" may be the beginning of some id, too.
    for by in (_by_name, _by_id, _by_image):
        if candidates := by(query, recordings):
            unique = {(found[0].subject, found[1]): found for found in candidates}.values()
            return sorted(unique, key=lambda found: (not found[0].sandboxes, -found[0].last))
    raise NotFound(f"nothing is recorded of a pod, container or image {query!r}")


def _by_id(query: str, recordings: Sequence[Recording]) -> list[tuple[Recording, str]]:
    if len(query) < _SHORTEST or not query.isalnum():
        return []
    return [
        (recording, name)
        for recording in recordings
        for object_id, name in recording.ids.items()
        if object_id.startswith(query)
    ]


def _by_name(query: str, recordings: Sequence[Recording]) -> list[tuple[Recording, str]]:
    pods = [recording for recording in recordings if not recording.subject.is_image]
    found = [(pod, "") for pod in pods if query in (pod.subject.name, str(pod.subject))]
    if not found:
        for pod in pods:
            names = pod.names - {""}
            found += [(pod, name) for name in names if query in (name, f"{pod.subject.name}/{name}")]
    return found


def _by_image(query: str, recordings: Sequence[Recording]) -> list[tuple[Recording, str]]:
    name = query
    with contextlib.suppress(ImageError):
        name = parse_reference(query).name
    return [(one, "") for one in recordings if one.subject.is_image and one.subject.name in (query, name)]


def _with_the_present(entries: list[Entry], running: Sequence[Runs], containers: Iterable[Container]) -> list[Entry]:
    """Return the entries, with commands that run, and exits of containers that the recording has dropped."""
    told = {entry.id for entry in entries if isinstance(entry, Life)}
    ends: list[Entry] = [
        Life(one.finished_at, one.config.metadata.name, one.id, "stopped", one.exit_code, one.reason)
        for one in containers
        if one.state is ContainerState.EXITED and one.id not in told
    ]
    return sorted([*ends, *entries, *running], key=lambda entry: entry.at) if ends or running else entries


def _subject(subject: Subject, container: str) -> str:
    if subject.is_image:
        return f"image {subject}"
    return f"container {container} of pod {subject}" if container else f"pod {subject}"


def _evidence(trouble: troubles.Trouble) -> str:
    """Describe where and when the trouble was seen."""
    entry = trouble.entry
    match entry:
        case Life(event="begun"):
            told = f"RunPodSandbox runs for {(time.time_ns() - entry.at) / 1e9:.0f} s, since it was asked for"
        case Life() if trouble.times > 1:
            told = f"it ended so at least {trouble.times} times in a row, the last"
        case Refused():
            told = f"{entry.call} was answered with {entry.code} after {entry.took / 1e9:.2f} s"
        case Life():
            told = f"container {entry.id[:13]} ended"
        case Ran():
            told = f"ExecSync: it took {entry.took / 1e9:.2f} s"
        case Runs():
            told = f"ExecSync: it runs for {(time.time_ns() - entry.at) / 1e9:.0f} s, since it was asked for"
        case Said() if trouble.stopped_by:
            told = f"it was told {(time.time_ns() - entry.at) / 1e9:.0f} s ago,"
        case Left():
            told = f"{entry.call} went on without its caller"
        case Plugin():
            told = f"the plugin ran for {entry.took / 1e9:.2f} s"
        case _:
            told = "the log has it"
    if isinstance(entry, Counted) and entry.count > 1:
        told = f"{told}, {entry.count} times since {_clock(entry.first)}, the last"
    return f"{told} at {_clock(entry.at)}"


def _clock(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at // 10**9))


def _last(entries: Sequence[Entry]) -> str:
    return f"the last that happened: {_shown(entries[-1]).text}" if entries else "nothing has happened yet"


def _moments(entry: Entry) -> Iterator[Moment]:
    """Yield an entry's lines. What a program wrote has lines of its own (`crisp bundle` leaves them out)."""
    kind = _KINDS[type(entry)]
    if isinstance(entry, Wrote):
        for line in entry.text.split("\n"):
            yield replace(_shown(Wrote(entry.at, entry.about, line)), kind=kind)
    else:
        shown = _shown(entry)
        yield replace(shown, kind=shown.kind or kind)
    if isinstance(entry, Ran) and entry.words:
        yield replace(_shown(Wrote(entry.at, entry.about, entry.words)), kind=_KINDS[Wrote])


def _shown(entry: Entry) -> Moment:
    match entry:
        case Step(operation=operation, name=name):
            return Moment(entry.at, entry.about, f"{operation}: {name}", entry.took)
        case Life():
            what = "container" if entry.about else "pod sandbox"
            how = f": {causes.exit_text(entry)}" if entry.event == "stopped" and entry.about else ""
            text = f"{what} {entry.id[:13]} {entry.event}{how}"
            return Moment(entry.at, entry.about, text, wrong=bool(how and entry.code))
        case Plugin(failure=failure):
            told = f": {failure}" if failure else ""
            text = f"network plugin {entry.name} {entry.command}{told}"
            return Moment(entry.at, "", text, entry.took, wrong=bool(failure))
        case Said(text=text) if text.startswith(CLUE):  # it may repeat what the program wrote
            return Moment(entry.at, entry.about, text, wrong=True, kind=_KINDS[Wrote])
        case Said():
            return Moment(entry.at, entry.about, entry.text, wrong=entry.level not in ("info", "debug"))
        case Wrote(text=text):
            return Moment(entry.at, entry.about, f"its last words: {text}")
        case Answered():
            return Moment(entry.at, entry.about, f"{entry.call} answered", entry.took)
        case Refused():
            text = f"{entry.call} refused ({entry.code}): {entry.text}"
            return Moment(entry.at, entry.about, text, entry.took, entry.count, wrong=True)
        case Left():
            text = f"{entry.call}: its caller gave up"
            return Moment(entry.at, entry.about, text, entry.took, wrong=True)
        case Runs(about=""):
            return Moment(entry.at, "", f"{entry.command} runs")
        case Runs():
            limit = f"a time limit of {entry.limit:g} s" if entry.limit else "no time limit"
            return Moment(entry.at, entry.about, f"runs {entry.command!r}, which has {limit}")
        case Ran():
            text = f"ran {entry.command!r}: exit code {entry.code}"
            return Moment(entry.at, entry.about, text, entry.took, entry.count, wrong=bool(entry.code))
