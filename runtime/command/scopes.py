"""Implements `--systemd-cgroup`: a container's cgroup is a scope of systemd (systemd.scope(5)).

Imported only with that flag: the D-Bus library and its imports take as long as a container's start.
"""

from __future__ import annotations

import os
from typing import Final, NoReturn

from linux import syscalls
from runtime.cgroups import Cgroup
from runtime.cgroups.systemd import Property, Scope, slice_path
from runtime.command.record import Record
from runtime.command.unit_properties import unit_properties
from runtime.command.units import SESSION, SYSTEM, Units
from runtime.errors import SpecError, failing
from runtime.light import contextlib, signal
from runtime.process.init import leave_the_loop
from runtime.process.parent import die_with, own_pidfd
from runtime.spec.values import Resources, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MEMBER: Final = "linux.cgroupsPath"


class Systemd:
    """The systemd driver: systemd manages the scope, and crisp-oci also writes the limits to the cgroup's files."""

    def __init__(
        self, record: Record, bus: str, scope: Scope | None = None, properties: Sequence[Property] = ()
    ) -> None:
        self._record = record
        self._bus = bus
        self._scope = scope  # only for a new container
        self._properties = properties
        self._placeholder: tuple[int, int] | None = None  # pid and pidfd

    @classmethod
    def new(cls, record: Record, spec: Spec, *, rootless: bool) -> Systemd:
        """Return the driver for a new container; a rootless one uses the user's systemd. Raises SpecError."""
        properties = unit_properties(spec.annotations)
        bus = SESSION if rootless else SYSTEM
        return cls(record, bus, container_scope(spec.linux.cgroups_path, record.id, bus), properties)

    def make(self, vacant: Callable[[str], Cgroup], resources: Resources) -> Cgroup:
        assert self._scope is not None
        with Units(self._bus) as systemd:
            cgroup = vacant(systemd.root() + self._scope.path)
            self._placeholder = _start_placeholder()  # systemd makes no scope without a process
            systemd.start(self._scope, self._record.id, self._placeholder[0], resources, self._properties)
            self._record.cgroup, self._record.scope, self._record.bus = cgroup.path, self._scope.name, self._bus
            cgroup.create(resources)  # write the exact limits: systemd rounds them
        return cgroup

    def end_placeholder(self) -> None:
        """End the placeholder: from now on the container's processes keep the scope."""
        if self._placeholder is not None:
            pid, pidfd = self._placeholder
            self._placeholder = None
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # the pid cannot be reused before it is reaped
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            os.close(pidfd)

    def update(self, resources: Resources) -> None:
        """Set limits in the files, in systemd, and in the files again, since systemd rounds.

        On failure restore them.
        """
        revert = self._record.group().update(resources)
        try:
            with Units(self._bus) as units:
                units.limit(self._record.scope, resources)
        except BaseException:
            revert()
            raise
        self._record.group().update(resources)

    def removed(self) -> None:
        """Stop the scope: systemd removes an empty one by itself, but too late if a new one gets the same name."""
        with Units(self._bus) as units:
            units.stop(self._record.scope)


def container_scope(cgroups_path: str, container_id: str, bus: str) -> Scope:
    """Return the unit for "slice:prefix:name"; without a path "crisp-oci-ID.scope". Raises SpecError."""
    default = "user.slice" if bus == SESSION else "system.slice"
    if not cgroups_path:
        return Scope(default, f"crisp-oci-{container_id}.scope")
    parts = cgroups_path.split(":")
    if len(parts) != 3 or not parts[2]:
        raise SpecError(_MEMBER, f"expected slice:prefix:name with --systemd-cgroup, got {cgroups_path!r}")
    slice, prefix, name = parts
    if "/" in prefix + name:
        raise SpecError(_MEMBER, f"a unit's name must not contain a slash, got {cgroups_path!r}")
    if name.endswith(".slice"):
        raise SpecError(_MEMBER, f"a container's unit is a scope, and {name!r} is a slice")
    slice_path(slice or default, _MEMBER)  # raises for an invalid slice
    return Scope(slice or default, f"{prefix}-{name}.scope" if prefix else f"{name}.scope")


def _start_placeholder() -> tuple[int, int]:
    """Start a placeholder: a child that waits in the scope until the container's init is in it, or we exit."""
    with failing("clone", "placeholder process of a scope"), own_pidfd() as caller:
        pid, pidfd = syscalls.clone(0)
        if pid == 0:
            try:
                _wait_to_be_killed(caller)
            finally:
                os._exit(1)
    return pid, pidfd


def _wait_to_be_killed(maker: int) -> NoReturn:
    leave_the_loop()
    die_with(maker)
    while True:
        signal.pause()
