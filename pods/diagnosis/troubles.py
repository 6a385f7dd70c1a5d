"""Finds what went wrong and was not resolved since: pure functions over the entries of a recording."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from pods.recorder.entry import CLUE, Answered, Entry, Left, Life, Plugin, Ran, Refused, Runs, Said, Step, Wrote

_START_ERROR: Final = "StartError"
SECCOMP: Final = "the seccomp profile denied "  # begins a remark about a call
_STOP: Final = "stop: "
_LOST: Final = "lost its shim"
_MOST: Final = 0.8
_PATIENCE: Final = 10_000_000_000  # nanoseconds until what is under way is a trouble
_CALM: Final = 120_000_000_000  # nanoseconds after which a container that runs is taken to go on
_AT_ONCE: Final = 2_000_000_000  # nanoseconds between a failed hook or probe and kubelet's stop of the container
_STREAMS: Final = ("ExecSync", "Exec", "Attach", "PortForward")
# The weight of each kind of trouble.
_FATAL, _FAILING, _NOTABLE = 3, 2, 1
# A successful call resolves earlier troubles of these calls.
_MAKES_GOOD: Final = {
    "PullImage": ("PullImage",),
    "StopPodSandbox": ("StopPodSandbox",),
    "RemovePodSandbox": ("RemovePodSandbox",),
    "StopContainer": ("StopContainer",),
    "RemoveContainer": ("RemoveContainer",),
    "RemoveImage": ("RemoveImage",),
    "UpdateContainerResources": ("UpdateContainerResources",),
    "CreateContainer": ("CreateContainer",),
    "StartContainer": ("CreateContainer", "StartContainer", "PullImage"),
    "RunPodSandbox": ("RunPodSandbox",),
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that went wrong.

    `stopped_by`: who told a container to end. `output`: its last lines of output. `during`: what took most of a call.
    `denied`: the last call that its seccomp profile denied. `times`: how often in a row it ended so. `clue`: what was
    found out when it had ended.
    """

    entry: Entry
    weight: int
    stopped_by: str = ""
    output: str = ""
    during: str = ""
    denied: str = ""
    times: int = 1
    clue: str = ""


def worst(entries: Iterable[Entry], now: int = 0) -> Trouble | None:
    """Return the worst unresolved trouble: the latest of those with the highest weight.

    `now`: the time, by which something may have been under way for too long; 0 does not ask for that.
    """
    found = _open_troubles(list(entries), now)
    return max(found, key=lambda trouble: (trouble.weight, trouble.entry.at), default=None)


def of_each(entries: Iterable[Entry], now: int = 0) -> list[Trouble]:
    """Return the worst unresolved trouble of the pod itself and of each container."""
    worst_of: dict[str, Trouble] = {}
    for trouble in sorted(_open_troubles(list(entries), now), key=lambda trouble: (trouble.weight, trouble.entry.at)):
        worst_of[trouble.entry.about] = trouble
    return list(worst_of.values())


@dataclass(slots=True)
class _Containers:
    """What is known of containers, by name, while the entries are read."""

    stops: dict[str, str]  # who told them to end
    told: dict[str, Said]  # the first of these remarks, of those that have not ended
    words: dict[str, str]
    clues: dict[str, str]
    ends: dict[str, tuple[str, int]]  # kind of the last end, and how many in a row
    begun: Life | None = None  # of a pod sandbox that is not there yet
    starts: dict[str, int] = field(default_factory=dict)  # when those that run did


def _open_troubles(entries: list[Entry], now: int) -> list[Trouble]:
    troubles: dict[tuple[str, str], Trouble] = {}
    known = _Containers({}, {}, {}, {}, {})
    denied: dict[str, str] = {}
    for entry in entries:
        match entry:
            case Refused():
                weight = _NOTABLE if entry.call in _STREAMS else _FATAL
                troubles[entry.about, entry.call] = Trouble(entry, weight)
            case Left():
                if entry.call not in _STREAMS:
                    troubles[entry.about, entry.call] = Trouble(entry, _FATAL, during=_longest(entry, entries))
            case Answered():
                for call in _MAKES_GOOD.get(entry.call, ()):
                    troubles.pop((entry.about, call), None)
            case Said(level="error"):
                # A pod that is lost takes its containers along, whose ends nobody saw.
                troubles[entry.about, "said"] = Trouble(entry, _FATAL if _LOST in entry.text else _FAILING)
            case Said(text=text) if text.startswith(_STOP):
                before = f"{known.stops[entry.about]}, then " if entry.about in known.stops else ""
                known.stops[entry.about] = before + text.removeprefix(_STOP)
                known.told.setdefault(entry.about, entry)
            case Said(text=text) if text.startswith(CLUE):
                known.clues[entry.about] = text.removeprefix(CLUE)
            case Said(text=text) if text.startswith(SECCOMP):
                denied[entry.about] = text.removeprefix(SECCOMP)
            case Wrote(text=text):
                known.words[entry.about] = text
            case Ran():
                if entry.code:
                    troubles[entry.about, entry.command] = Trouble(entry, _NOTABLE)
                else:
                    troubles.pop((entry.about, entry.command), None)
            case Runs(about=""):
                pass  # a network plugin
            case Runs(limit=0) if now - entry.at > _PATIENCE:
                troubles[entry.about, "runs"] = Trouble(entry, _FAILING)
            case Life():
                _live(entry, troubles, known)
            case Plugin(failure=failure) if failure:
                troubles["", "plugin"] = Trouble(entry, _NOTABLE)
            case _:
                pass
    if (begun := known.begun) is not None and now - begun.at > _PATIENCE:
        troubles["", "begun"] = Trouble(begun, _FAILING, during=_waited_for(begun, entries, now))
    for about, at in known.starts.items():
        if (about, "exit") in troubles and now - at > _CALM:  # it goes on: what fails now is worse
            troubles[about, "exit"] = replace(troubles[about, "exit"], weight=_NOTABLE)
    for told in known.told.values():
        if now - told.at > _PATIENCE:
            troubles[told.about, "stop"] = Trouble(told, _FAILING, known.stops[told.about])
    # The kernel's report of a call may arrive after the exit that it caused.
    return [replace(one, denied=denied.get(one.entry.about, "")) for one in troubles.values()]


def _live(entry: Life, troubles: dict[tuple[str, str], Trouble], known: _Containers) -> None:
    about = entry.about
    if not about:
        known.begun = entry if entry.event == "begun" else None
        if entry.event == "stopped":
            known.stops.setdefault("", "the pod was stopped")
        else:
            known.ends.clear()  # containers of another sandbox
    known.starts.pop(about, None)
    if entry.event == "started":
        known.starts[about] = entry.at
        for call in ("RunPodSandbox",) if not about else ("CreateContainer", "StartContainer"):
            troubles.pop((about, call), None)
        known.stops.pop(about, None)
        troubles.pop((about, "said"), None)
    if entry.event in ("started", "stopped", "deleted"):
        told = known.told.pop(about, None)
        if entry.event == "stopped" and about and entry.reason != _START_ERROR:
            _end(entry, told, troubles, known)


def _end(entry: Life, told: Said | None, troubles: dict[tuple[str, str], Trouble], known: _Containers) -> None:
    """Take a container's end. `told`: it was told to."""
    about = entry.about
    output, stopped_by = known.words.pop(about, ""), known.stops.pop(about, "")
    clue = known.clues.pop(about, "")
    failed = bool(entry.code) or entry.reason == "OOMKilled"
    kind = "stopped" if stopped_by else "failed" if failed else "well"
    before, count = known.ends.get(about, ("", 0))
    times = count + 1 if kind == before else 1
    known.ends[about] = kind, times
    troubles.pop((about, "exit"), None)
    if told is not None and (key := _blamed(told, troubles)) is not None:
        troubles[key] = replace(troubles[key], stopped_by=stopped_by)
    elif failed or times > 1:  # what ends by itself or is stopped is started again
        weight = _NOTABLE if stopped_by else _FAILING
        troubles[about, "exit"] = Trouble(entry, weight, stopped_by, output, times=times, clue=clue)


def _blamed(told: Said, troubles: dict[tuple[str, str], Trouble]) -> tuple[str, str] | None:
    """Return the command that failed just before a container was told to end: a hook or a probe."""
    failures = [
        (one.entry.at, key)
        for key, one in troubles.items()
        if one.entry.about == told.about and 0 <= told.at - one.entry.at < _AT_ONCE
        if isinstance(one.entry, Ran) or (isinstance(one.entry, Refused) and one.entry.call == "ExecSync")
    ]
    return max(failures)[1] if failures else None


def _longest(left: Left, entries: Iterable[Entry]) -> str:
    """Return the longest step or plugin run during the call, or what had not ended by then; "" if nothing is known."""
    begun = left.at - left.took
    timed = [one for one in entries if isinstance(one, Step | Plugin)]
    during = [one for one in timed if one.at > begun and one.at - one.took < left.at]
    plugin = max((one for one in during if isinstance(one, Plugin)), key=_took, default=None)
    step = max((one for one in during if isinstance(one, Step)), key=_took, default=None)
    most = max(map(_took, during), default=0)
    runs = _plugin_that_runs(entries)
    if runs is not None and runs.at < left.at and left.at - runs.at > most:
        return f"{(left.at - runs.at) / 1e9:.1f} s of that it waited for {runs.command}, which has not ended"
    last = max(during, key=lambda one: one.at, default=None)
    if last is not None and (waited := left.at - last.at) > most:
        return f"{waited / 1e9:.1f} s of that were for what came next after {_named(last)}, and had not ended"
    if plugin is not None and (step is None or plugin.took > step.took * _MOST):  # it is the step's own time
        return f"{_named(plugin)} took {plugin.took / 1e9:.1f} s"
    return f"{_named(step)} took {step.took / 1e9:.1f} s" if step is not None else ""


def _waited_for(begun: Life, entries: Iterable[Entry], now: int) -> str:
    """Return what a sandbox that is being made waits for, or the last step or plugin run; "" if there is none."""
    if (runs := _plugin_that_runs(entries)) is not None:
        return f"it waits for {runs.command}, which runs for {(now - runs.at) / 1e9:.0f} s"
    done = [one for one in entries if isinstance(one, Step | Plugin) and one.at >= begun.at and not one.about]
    last = max(done, key=lambda one: one.at, default=None)
    return "" if last is None else f"the last that was done is {_named(last)}"


def _plugin_that_runs(entries: Iterable[Entry]) -> Runs | None:
    return next((one for one in entries if isinstance(one, Runs) and not one.about), None)


def _named(entry: Step | Plugin) -> str:
    if isinstance(entry, Plugin):
        return f"network plugin {entry.name!r} ({entry.command})"
    return f"step {entry.name!r}"


def _took(entry: Step | Plugin) -> int:
    return entry.took
