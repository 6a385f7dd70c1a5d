"""`--systemd-cgroup`: a container's cgroup is a scope that systemd makes (systemd.scope(5)).

Imported only with that flag, since the D-Bus library and what it needs cost as much as a container.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from linux import syscalls
from runtime.cgroups import Cgroup
from runtime.cgroups.systemd import Property, Scope, slice_path
from runtime.command.record import Record
from runtime.command.unit_properties import unit_properties
from runtime.command.units import SESSION, SYSTEM, Units
from runtime.errors import SpecError, failing
from runtime.light import signal
from runtime.process.become import die_with_parent
from runtime.process.init import leave_the_loop
from runtime.spec.values import Resources, Spec

_MEMBER: Final = "linux.cgroupsPath"


class Systemd:
    """A `CgroupDriver`: systemd keeps the scope, and the limits in its files are written by us besides."""

    def __init__(
        self, record: Record, bus: str, scope: Scope | None = None, properties: Sequence[Property] = ()
    ) -> None:
        self._record = record
        self._bus = bus
        self._scope = scope  # of a container that is made
        self._properties = properties
        self._holder: tuple[int, int] | None = None  # pid and pidfd

    @classmethod
    def new(cls, record: Record, spec: Spec, *, rootless: bool) -> Systemd:
        """Of a container that is made; an ordinary user's systemd is asked where there is no root. Raises SpecError."""
        properties = unit_properties(spec.annotations)
        bus = SESSION if rootless else SYSTEM
        return cls(record, bus, container_scope(spec.linux.cgroups_path, record.id, bus), properties)

    def make(self, vacant: Callable[[str], Cgroup], resources: Resources) -> Cgroup:
        assert self._scope is not None
        with Units(self._bus) as systemd:
            cgroup = vacant(systemd.root() + self._scope.path)
            self._holder = _start_holder()  # systemd wants a process in a scope from the first
            systemd.start(self._scope, self._record.id, self._holder[0], resources, self._properties)
            self._record.cgroup, self._record.scope, self._record.bus = cgroup.path, self._scope.name, self._bus
            cgroup.create(resources)  # the limits as they are: systemd rounds
        return cgroup

    def drop_holder(self) -> None:
        """Let the scope live by the container's processes alone."""
        if self._holder is not None:
            pid, pidfd = self._holder
            self._holder = None
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # nobody else has its number before it is reaped
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            os.close(pidfd)

    def update(self, resources: Resources) -> None:
        """The files last: systemd writes limits to them too, but rounded. Where one refuses, both have the old ones."""
        take_back = self._record.group().update(resources)
        try:
            with Units(self._bus) as units:
                units.limit(self._record.scope, resources)
        except BaseException:
            take_back()
            raise
        self._record.group().update(resources)

    def removed(self) -> None:
        """systemd drops an empty scope by itself, but not before it hears of it; a new one may have its name then."""
        with Units(self._bus) as units:
            units.stop(self._record.scope)


def container_scope(cgroups_path: str, container_id: str, bus: str) -> Scope:
    """The unit that "slice:prefix:name" stands for; without a path "crisp-oci-ID.scope". Raises SpecError."""
    default = "user.slice" if bus == SESSION else "system.slice"
    if not cgroups_path:
        return Scope(default, f"crisp-oci-{container_id}.scope")
    parts = cgroups_path.split(":")
    if len(parts) != 3 or not parts[2]:
        raise SpecError(_MEMBER, f"expected slice:prefix:name with --systemd-cgroup, got {cgroups_path!r}")
    slice, prefix, name = parts
    if "/" in prefix + name:
        raise SpecError(_MEMBER, f"a unit's name has no slash, got {cgroups_path!r}")
    if name.endswith(".slice"):
        raise SpecError(_MEMBER, f"a container gets a scope, and {name!r} is a slice's name")
    slice_path(slice or default, _MEMBER)  # refuses what is none
    return Scope(slice or default, f"{prefix}-{name}.scope" if prefix else f"{name}.scope")


def _start_holder() -> tuple[int, int]:
    """A child that does nothing in a scope until the container's init is there. It dies with its parent."""
    with failing("clone", "holder of a scope"):
        pid, pidfd = syscalls.clone(0)
    if pid == 0:
        try:
            _hold()
        finally:
            os._exit(1)
    return pid, pidfd


def _hold() -> NoReturn:
    leave_the_loop()
    die_with_parent()
    while True:
        signal.pause()
