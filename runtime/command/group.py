"""Creates the cgroup of a new container."""

from __future__ import annotations

from runtime.cgroups import Cgroup, CgroupInUse
from runtime.command import removal
from runtime.command.cgroup_driver import new_driver
from runtime.command.invocation import Context
from runtime.command.record import Record, no_cgroup
from runtime.errors import RuntimeCoreError
from runtime.light import contextlib, replace
from runtime.spec.devices import DEFAULT_RULES
from runtime.spec.values import Resources, Spec


class ContainerGroup:
    """Creates the cgroup, and notes in the record what must be removed with the container."""

    def __init__(self, context: Context, spec: Spec, record: Record) -> None:
        self._context = context
        self._spec = spec
        self._record = record
        self._driver = new_driver(record, spec, systemd=context.systemd_cgroup, rootless=context.rootless)

    def make(self, undo: contextlib.ExitStack) -> Cgroup:
        """Create the cgroup with its limits. Its only process is systemd's placeholder, if any (see `end_placeholder`).

        Raises RuntimeCoreError. A rootless caller gets a cgroup without hierarchies instead.
        """
        resources = with_default_devices(self._spec.linux.resources)
        try:
            with contextlib.ExitStack() as unmade:
                unmade.callback(self._driver.end_placeholder)
                unmade.callback(removal.remove_cgroup, self._record, self._context.log)
                cgroup = self._driver.make(self._vacant, resources)
                undo.push(unmade.pop_all())
        except RuntimeCoreError as error:
            self._record.cgroup = self._record.scope = self._record.bus = ""
            return self._without_cgroup(error)
        return cgroup

    def end_placeholder(self) -> None:
        """End the placeholder: from now on the container's processes keep the scope."""
        self._driver.end_placeholder()

    def _vacant(self, path: str) -> Cgroup:
        cgroup = Cgroup.at(self._context.hierarchies(), path)
        if cgroup.is_populated():
            # Deleting the container kills all processes in its cgroup.
            count = len(cgroup.pids())
            raise CgroupInUse(f"container's cgroup is not empty: {count} process(es) found in `{cgroup.path}`")
        return cgroup

    def _without_cgroup(self, error: RuntimeCoreError) -> Cgroup:
        if not self._context.rootless or isinstance(error, CgroupInUse):
            raise error
        self._context.log.debug(f"continuing without a cgroup: {error}")
        return no_cgroup()


def with_default_devices(resources: Resources) -> Resources:
    """Extend a device filter by the devices that every container has (config-linux.md "Default Devices").

    Also allows mknod of any device, as runc does: opening a device is what matters.
    """
    if not resources.devices:
        return resources
    return replace(resources, devices=(*resources.devices, *DEFAULT_RULES))
