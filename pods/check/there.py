"""Reads what is there: directories, mounts, namespaces, shims and cgroups. Blocks; changes nothing."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from linux.processes import pids
from pods.cgroups.places import container_cgroup, pod_cgroup
from pods.check import processes
from pods.check.processes import Orphan
from runtime.cgroups import Hierarchies

if TYPE_CHECKING:
    from pods.model import Sandbox
    from pods.settings import NodeSettings

_ID: Final = r"[0-9a-f]{64}"
_CGROUP: Final = re.compile(rf"(?:crisp-)?({_ID})(?:\.scope)?\Z")


@dataclass(frozen=True, slots=True)
class There:
    """What exists of this daemon's pods, by the ids that the names contain."""

    sandbox_dirs: frozenset[str]
    bundles: frozenset[str]
    layers: frozenset[str]
    mounts: Mapping[str, str]  # mount point -> sandbox
    pins: Mapping[str, bool]  # sandbox -> whether a process is in the namespace
    shims: Mapping[int, str]  # pid -> sandbox
    orphans: tuple[Orphan, ...]  # of any daemon
    cgroups: Mapping[str, str]  # path -> container; of pods that are known


def look(settings: NodeSettings, sandboxes: Iterable[Sandbox]) -> There:
    """Look at everything. Raises OSError, RuntimeCoreError."""
    return There(
        sandbox_dirs=frozenset(_names(settings.state / "sandboxes")),
        bundles=frozenset(_names(settings.state / "containers")),
        layers=frozenset(_names(settings.root / "containers")),
        mounts=dict(_mounts(settings.state / "sandboxes")),
        pins=dict(_pins(settings)),
        shims=dict(processes.shims(settings)),
        orphans=tuple(processes.orphans()),
        cgroups=dict(_cgroups(sandboxes)),
    )


def _names(directory: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return os.listdir(directory)
    return []


def _mounts(sandboxes: Path) -> Iterator[tuple[str, str]]:
    below = f"{sandboxes}/"
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        place = line.split(" ")[4]
        if place.startswith(below):
            yield place, place.removeprefix(below).partition("/")[0]


def _pins(settings: NodeSettings) -> Iterator[tuple[str, bool]]:
    pattern = re.compile(settings.netns_path(f"({_ID})").name.replace("-(", r"\-(") + r"\Z")
    directory = settings.netns_path("").parent
    found = {name: match[1] for name in _names(directory) if (match := pattern.match(name))}
    lived_in = set(_namespaces()) if found else set()
    for name, sandbox_id in found.items():
        with contextlib.suppress(FileNotFoundError):
            yield sandbox_id, (directory / name).stat().st_ino in lived_in


def _namespaces() -> Iterator[int]:
    """Yield the network namespaces that processes are in."""
    for pid in pids():
        with contextlib.suppress(OSError):
            yield os.stat(f"/proc/{pid}/ns/net").st_ino


def _cgroups(sandboxes: Iterable[Sandbox]) -> Iterator[tuple[str, str]]:
    hierarchies = Hierarchies.detect()
    for sandbox in sandboxes:
        parent = pod_cgroup(sandbox)
        names = {name for mountpoint in hierarchies.mountpoints() for name in _directories(f"{mountpoint}{parent}")}
        for name in names:
            if (match := _CGROUP.match(name)) and container_cgroup(sandbox, match[1]) == f"{parent}/{name}":
                yield f"{parent}/{name}", match[1]


def _directories(path: str) -> list[str]:
    with contextlib.suppress(FileNotFoundError), os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []
