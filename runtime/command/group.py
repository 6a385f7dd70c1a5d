"""The cgroup of a container in the making: directories of its own, or a scope that systemd is asked for."""

from __future__ import annotations

import contextlib

from runtime.cgroups import Cgroup, CgroupInUse
from runtime.command import removal
from runtime.command.invocation import Context
from runtime.command.record import Record, no_cgroup
from runtime.errors import RuntimeCoreError
from runtime.light import replace
from runtime.spec.devices import DEFAULT_RULES
from runtime.spec.values import Resources, Spec


class ContainerGroup:
    """Makes it, and notes in the record what is to be removed with the container."""

    def __init__(self, context: Context, spec: Spec, record: Record) -> None:
        self._context = context
        self._spec = spec
        self._record = record
        self._holder: tuple[int, int] | None = None  # pid and pidfd

    def make(self, undo: contextlib.ExitStack) -> Cgroup:
        """With its limits set, and no process in it but systemd's holder, which is to be dropped when one is.

        Raises RuntimeCoreError; rootless callers get a cgroup of no hierarchies then.
        """
        return self._make_scope(undo) if self._context.systemd_cgroup else self._make_directories(undo)

    def drop_holder(self) -> None:
        """Let a scope live by the container's processes alone."""
        if self._holder is not None:
            removal.end_child(*self._holder)
            self._holder = None

    def _make_directories(self, undo: contextlib.ExitStack) -> Cgroup:
        path = self._spec.linux.cgroups_path or f"/crisp-oci/{self._record.id}"
        try:
            cgroup = self._vacant(path)
            cgroup.create(with_default_devices(self._spec.linux.resources))
        except RuntimeCoreError as error:
            return self._without_cgroup(error)
        self._record.cgroup = cgroup.path
        undo.callback(removal.remove_cgroup, self._record, self._context.log)
        return cgroup

    def _make_scope(self, undo: contextlib.ExitStack) -> Cgroup:
        """The same by way of systemd, which wants a process in a scope from the first."""
        from runtime.command import units
        from runtime.command.unit_properties import unit_properties

        more = unit_properties(self._spec.annotations)
        bus = units.SESSION if self._context.rootless else units.SYSTEM
        scope = units.container_scope(self._spec.linux.cgroups_path, self._record.id, bus)
        resources = with_default_devices(self._spec.linux.resources)
        try:
            with contextlib.ExitStack() as unmade, units.Units(bus) as systemd:
                cgroup = self._vacant(systemd.root() + scope.path)
                self._holder = units.start_holder()
                unmade.callback(self.drop_holder)
                systemd.start(scope, self._record.id, self._holder[0], resources, more)
                self._record.cgroup, self._record.scope, self._record.bus = cgroup.path, scope.name, bus
                unmade.callback(removal.remove_cgroup, self._record, self._context.log)
                cgroup.create(resources)  # the limits as they are: systemd rounds
                undo.push(unmade.pop_all())
        except RuntimeCoreError as error:
            self._record.cgroup = self._record.scope = self._record.bus = ""
            return self._without_cgroup(error)
        return cgroup

    def _vacant(self, path: str) -> Cgroup:
        cgroup = Cgroup.at(self._context.hierarchies(), path)
        if cgroup.is_populated():
            # What is in the container's cgroup is killed with it.
            count = len(cgroup.pids())
            raise CgroupInUse(f"container's cgroup is not empty: {count} process(es) found in `{cgroup.path}`")
        return cgroup

    def _without_cgroup(self, error: RuntimeCoreError) -> Cgroup:
        if not self._context.rootless or isinstance(error, CgroupInUse):
            raise error
        self._context.log.debug(f"without a cgroup: {error}")
        return no_cgroup()


def with_default_devices(resources: Resources) -> Resources:
    """A device filter that also lets through what a runtime supplies itself (config-linux.md "Default Devices").

    And the making of any node, as runc has it: it is opening one that matters.
    """
    if not resources.devices:
        return resources
    return replace(resources, devices=(*resources.devices, *DEFAULT_RULES))
