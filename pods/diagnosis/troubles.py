"""Finds what went wrong and was not resolved since: pure functions over the entries of a recording."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from pods.recorder.entry import Answered, Entry, Left, Life, Plugin, Ran, Refused, Said, Step, Wrote

_START_ERROR: Final = "StartError"
SECCOMP: Final = "the seccomp profile denied "  # begins a remark about a call
_STOP: Final = "stop: "
_LOST: Final = "lost its shim"
_MOST: Final = 0.8
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

    `stopped_by`: who told a container to end. `output`: its last line of output. `during`: what took most of a call.
    `denied`: the last call that its seccomp profile denied.
    """

    entry: Entry
    weight: int
    stopped_by: str = ""
    output: str = ""
    during: str = ""
    denied: str = ""


def worst(entries: Iterable[Entry]) -> Trouble | None:
    """Return the worst unresolved trouble: the latest of those with the highest weight."""
    found = _open_troubles(list(entries))
    return max(found, key=lambda trouble: (trouble.weight, trouble.entry.at), default=None)


def of_each(entries: Iterable[Entry]) -> list[Trouble]:
    """Return the worst unresolved trouble of the pod itself and of each container."""
    worst_of: dict[str, Trouble] = {}
    for trouble in sorted(_open_troubles(list(entries)), key=lambda trouble: (trouble.weight, trouble.entry.at)):
        worst_of[trouble.entry.about] = trouble
    return list(worst_of.values())


def _open_troubles(entries: list[Entry]) -> list[Trouble]:
    troubles: dict[tuple[str, str], Trouble] = {}
    stops: dict[str, str] = {}  # by container
    words: dict[str, str] = {}
    denied: dict[str, str] = {}
    for entry in entries:
        match entry:
            case Refused():
                weight = _NOTABLE if entry.call in ("ExecSync", "Exec", "Attach", "PortForward") else _FATAL
                troubles[entry.about, entry.call] = Trouble(entry, weight)
            case Left():
                if entry.call not in ("ExecSync", "Exec", "Attach", "PortForward"):
                    troubles[entry.about, entry.call] = Trouble(entry, _FATAL, during=_longest(entry, entries))
            case Answered():
                for call in _MAKES_GOOD.get(entry.call, ()):
                    troubles.pop((entry.about, call), None)
            case Said(level="error"):
                # A pod that is lost takes its containers along, whose ends nobody saw.
                troubles[entry.about, "said"] = Trouble(entry, _FATAL if _LOST in entry.text else _FAILING)
            case Said(text=text) if text.startswith(_STOP):
                before = f"{stops[entry.about]}, then " if entry.about in stops else ""
                stops[entry.about] = before + text.removeprefix(_STOP)
            case Said(text=text) if text.startswith(SECCOMP):
                denied[entry.about] = text.removeprefix(SECCOMP)
            case Wrote(text=text):
                words[entry.about] = text
            case Ran():
                if entry.code:
                    troubles[entry.about, entry.command] = Trouble(entry, _NOTABLE)
                else:
                    troubles.pop((entry.about, entry.command), None)
            case Life():
                _live(entry, troubles, stops, words)
            case Plugin(failure=failure) if failure:
                troubles["", "plugin"] = Trouble(entry, _NOTABLE)
            case _:
                pass
    # The kernel's report of a call may arrive after the exit that it caused.
    return [replace(one, denied=denied.get(one.entry.about, "")) for one in troubles.values()]


def _live(entry: Life, troubles: dict[tuple[str, str], Trouble], stops: dict[str, str], words: dict[str, str]) -> None:
    if entry.event == "started":
        for call in ("RunPodSandbox",) if not entry.about else ("CreateContainer", "StartContainer"):
            troubles.pop((entry.about, call), None)
        stops.pop(entry.about, None)
        troubles.pop((entry.about, "said"), None)
    elif entry.event == "stopped" and entry.about and entry.reason != _START_ERROR:
        if entry.code or entry.reason == "OOMKilled":
            stopped_by = stops.pop(entry.about, "")
            weight = _NOTABLE if stopped_by else _FAILING
            troubles[entry.about, "exit"] = Trouble(entry, weight, stopped_by, words.pop(entry.about, ""))
        else:
            troubles.pop((entry.about, "exit"), None)
    elif entry.event == "stopped" and not entry.about:
        stops.setdefault("", "the pod was stopped")


def _longest(left: Left, entries: Iterable[Entry]) -> str:
    """Return the longest step or plugin run during the call; "" if none has ended."""
    begun = left.at - left.took
    timed = [one for one in entries if isinstance(one, Step | Plugin)]
    during = [one for one in timed if one.at > begun and one.at - one.took < left.at]
    plugin = max((one for one in during if isinstance(one, Plugin)), key=_took, default=None)
    step = max((one for one in during if isinstance(one, Step)), key=_took, default=None)
    if plugin is not None and (step is None or plugin.took > step.took * _MOST):  # it is the step's own time
        return f"network plugin {plugin.name!r} ({plugin.command}) took {plugin.took / 1e9:.1f} s"
    return f"step {step.name!r} took {step.took / 1e9:.1f} s" if step is not None else ""


def _took(entry: Step | Plugin) -> int:
    return entry.took
