"""What the kernel and the disk have of pods, found without crisp, held against the model."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from tests import cgroups
from tests.daemon import Daemon
from tests.leaks import NETNS
from tests.model.worlds import World

_ID = re.compile(r"[0-9a-f]{64}")


def leftovers(daemon: Daemon, world: World) -> list[str]:
    """A line for each thing that the machine has and should not have, or the reverse."""
    pods = [pod for pod in world.pods.values() if not pod.stopped]
    networked = {pod.id for pod in pods if pod.kind.own_network}
    running = {container.id for container in world.containers.values() if container.runs}
    living = {pod.id for pod in pods}
    containers = {container.id for container in world.containers.values() if container.pod in living}
    return [
        *_differences("shim", set(_shims()), {pod.id for pod in pods if not pod.lost}),
        *_differences("network namespace", {name.removeprefix("crisp-") for name in os.listdir(NETNS)}, networked),
        *_differences("address", set(_addresses(daemon)), networked),
        *_differences("populated cgroup", set(_populated()), running),
        *(f"cgroup of {one}" for one in set(_cgroups()) - containers - living),
        *(f"mount of {one}" for one in set(_mounts(daemon)) - containers - living),
        *(f"directory of {one}" for one in set(_directories(daemon)) - world.pods.keys() - world.containers.keys()),
    ]


def _differences(kind: str, there: set[str], due: set[str]) -> Iterator[str]:
    yield from (f"{kind} of {one}" for one in there - due)
    yield from (f"no {kind} of {one}" for one in due - there)


def _shims() -> Iterator[str]:
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            command = Path("/proc", pid, "cmdline").read_text(errors="replace")
        except OSError:
            continue
        if command.startswith("crisp-shim ") and (found := _ID.search(command)):
            yield found[0]


def _addresses(daemon: Daemon) -> Iterator[str]:
    for lease in daemon.leases.rglob("10.*"):
        try:
            yield lease.read_text().split()[0]
        except (FileNotFoundError, IndexError):
            continue


def _cgroup_directories() -> Iterator[Path]:
    for hierarchy in cgroups.hierarchies():
        for directory, _, _ in os.walk(hierarchy):
            if _ID.search(os.path.basename(directory)):
                yield Path(directory)


def _cgroups() -> Iterator[str]:
    yield from (found[0] for path in _cgroup_directories() if (found := _ID.search(path.name)))


def _populated() -> Iterator[str]:
    for path in _cgroup_directories():
        try:
            populated = (path / "cgroup.procs").read_text()
        except OSError:
            continue
        if populated and (found := _ID.search(path.name)):
            yield found[0]


def _mounts(daemon: Daemon) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place = line.split(" ")[4]
        if place.startswith(f"{daemon.directory}/") and (found := _ID.search(place)):
            yield found[0]


def _directories(daemon: Daemon) -> Iterator[str]:
    for place in ("state/sandboxes", "state/containers", "root/containers"):
        there = daemon.directory / place
        yield from os.listdir(there) if there.is_dir() else ()
