"""The cgroup of a container in the making."""

from __future__ import annotations

import contextlib

from runtime.cgroups import Cgroup, CgroupInUse
from runtime.command import removal
from runtime.command.cgroup_driver import new_driver
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
        self._driver = new_driver(record, spec, systemd=context.systemd_cgroup, rootless=context.rootless)

    def make(self, undo: contextlib.ExitStack) -> Cgroup:
        """With its limits set, and no process in it but systemd's holder, which is to be dropped when one is.

        Raises RuntimeCoreError; rootless callers get a cgroup of no hierarchies then.
        """
        resources = with_default_devices(self._spec.linux.resources)
        try:
            with contextlib.ExitStack() as unmade:
                unmade.callback(self._driver.drop_holder)
                unmade.callback(removal.remove_cgroup, self._record, self._context.log)
                cgroup = self._driver.make(self._vacant, resources)
                undo.push(unmade.pop_all())
        except RuntimeCoreError as error:
            self._record.cgroup = self._record.scope = self._record.bus = ""
            return self._without_cgroup(error)
        return cgroup

    def drop_holder(self) -> None:
        """Let a scope live by the container's processes alone."""
        self._driver.drop_holder()

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
