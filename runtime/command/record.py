"""Defines the record of a container on disk, and computes its present state."""

from __future__ import annotations

import os

from runtime.cgroups import Cgroup, Hierarchies
from runtime.light import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


@dataclass(slots=True)
class Record:
    """A container's record. `created` is RFC 3339.

    `start_time`, in clock ticks since boot, distinguishes the init from a later process with the same pid. `cgroup` is
    "" if the container has none of its own. With systemd the cgroup is the unit `scope` on `bus` ("SYSTEM" or
    "SESSION").
    """

    id: str
    oci_version: str
    bundle: str
    rootfs: str
    created: str
    owner: str
    pid: int = 0
    start_time: int = 0
    cgroup: str = ""
    scope: str = ""
    bus: str = ""

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Record:
        return cls(**{name: value for name, value in document.items() if name in cls.__slots__})

    @property
    def alive(self) -> bool:
        """Whether the init process exists and has not exited."""
        return self.pid > 0 and start_time(self.pid) == self.start_time

    def group(self) -> Cgroup:
        """Return the container's cgroup. Without one: a cgroup without hierarchies, whose operations do nothing."""
        if not self.cgroup:
            return no_cgroup()
        return Cgroup.at(Hierarchies.detect(), self.cgroup)


def no_cgroup() -> Cgroup:
    """Return a cgroup without hierarchies, for callers that cannot have one."""
    return Cgroup.at(Hierarchies({}, "", frozenset()), "/none")


def start_time(pid: int) -> int:
    """Return when the process started, in clock ticks since boot; 0 if it does not exist or is a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields_ = file.read().rsplit(b") ", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields_[0] in (b"Z", b"X") else int(fields_[19])


def status(record: Record, fifo: str) -> str:
    """Return the status of the runtime specification, or runc's additional "paused"."""
    if not record.pid:
        return "creating"
    if not record.alive:
        return "stopped"
    if record.cgroup and record.group().is_frozen():
        return "paused"
    return "created" if is_waiting(fifo) else "running"


def is_waiting(fifo: str) -> bool:
    """Return whether an init waits to be started: only then the FIFO has a reader."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def state_document(record: Record, status: str, annotations: Mapping[str, str]) -> dict[str, Any]:
    """Return the state of the runtime specification ("State"), with the members that runc adds."""
    document: dict[str, Any] = {
        "ociVersion": record.oci_version,
        "id": record.id,
        "pid": record.pid if status not in ("stopped", "creating") else 0,
        "status": status,
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
    }
    if annotations:
        document["annotations"] = dict(annotations)
    document["owner"] = record.owner
    return document
