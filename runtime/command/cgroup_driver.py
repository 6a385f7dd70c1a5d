"""Who makes a container's cgroup, limits it, and hears of its end: crisp-oci by the file system, or systemd.

Which of them it is for a new container the command line says (`--systemd-cgroup`), afterwards the container's record.
"""

from __future__ import annotations

from collections.abc import Callable

from runtime.cgroups import Cgroup
from runtime.command.record import Record
from runtime.spec.values import Resources, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class CgroupDriver(Protocol):
        """Of one container. All raises RuntimeCoreError."""

        def make(self, vacant: Callable[[str], Cgroup], resources: Resources) -> Cgroup:
            """The cgroup that `vacant` finds at its path, made, with its limits; the record has what was made."""

        def drop_holder(self) -> None:
            """End the process that holds the cgroup until the container's own is in it, if it needs one."""

        def update(self, resources: Resources) -> None:
            """Set those limits, all or none."""

        def removed(self) -> None:
            """The cgroup's directories are gone."""


class FileSystem:
    """Directories of the container's own."""

    def __init__(self, record: Record, path: str = "") -> None:
        self._record = record
        self._path = path  # of a container that is made

    def make(self, vacant: Callable[[str], Cgroup], resources: Resources) -> Cgroup:
        cgroup = vacant(self._path)
        cgroup.create(resources)
        self._record.cgroup = cgroup.path
        return cgroup

    def drop_holder(self) -> None: ...

    def update(self, resources: Resources) -> None:
        self._record.group().update(resources)

    def removed(self) -> None: ...


def new_driver(record: Record, spec: Spec, *, systemd: bool, rootless: bool) -> CgroupDriver:
    """Of a container that is made. Raises SpecError for what systemd cannot be asked for."""
    if not systemd:
        return FileSystem(record, spec.linux.cgroups_path or f"/crisp-oci/{record.id}")
    from runtime.command.scopes import Systemd

    return Systemd.new(record, spec, rootless=rootless)


def driver_of(record: Record) -> CgroupDriver:
    """Of a container that was made."""
    if not record.scope:
        return FileSystem(record)
    from runtime.command.scopes import Systemd

    return Systemd(record, record.bus)
