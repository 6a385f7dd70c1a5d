"""Creates and limits a container's cgroup: by the file system or by systemd.

For a new container `--systemd-cgroup` decides which of them; later the container's record does.
"""

from __future__ import annotations

from runtime.cgroups import Cgroup
from runtime.command.record import Record
from runtime.spec.values import Resources, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class CgroupDriver(Protocol):
        """The cgroup driver of one container. All methods raise RuntimeCoreError."""

        def make(self, vacant: Callable[[str], Cgroup], resources: Resources) -> Cgroup:
            """Create the cgroup that `vacant` returns for its path, with limits, and note it in the record."""

        def end_placeholder(self) -> None:
            """End the placeholder process, if any, that keeps the cgroup until the container's processes are in it."""

        def update(self, resources: Resources) -> None:
            """Set the limits, all or none."""

        def removed(self) -> None:
            """Do what is due after the cgroup's directories were removed."""


class FileSystem:
    """The cgroupfs driver: creates the directories itself."""

    def __init__(self, record: Record, path: str = "") -> None:
        self._record = record
        self._path = path  # only for a new container

    def make(self, vacant: Callable[[str], Cgroup], resources: Resources) -> Cgroup:
        cgroup = vacant(self._path)
        cgroup.create(resources)
        self._record.cgroup = cgroup.path
        return cgroup

    def end_placeholder(self) -> None: ...

    def update(self, resources: Resources) -> None:
        self._record.group().update(resources)

    def removed(self) -> None: ...


def new_driver(record: Record, spec: Spec, *, systemd: bool, rootless: bool) -> CgroupDriver:
    """Return the driver for a new container. Raises SpecError for what systemd cannot be asked for."""
    if not systemd:
        return FileSystem(record, spec.linux.cgroups_path or f"/crisp-oci/{record.id}")
    from runtime.command.scopes import Systemd

    return Systemd.new(record, spec, rootless=rootless)


def driver_of(record: Record) -> CgroupDriver:
    """Return the driver of an existing container."""
    if not record.scope:
        return FileSystem(record)
    from runtime.command.scopes import Systemd

    return Systemd(record, record.bus)
