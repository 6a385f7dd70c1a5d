"""UpdateContainerResources and UpdatePodSandboxResources."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pods import bundle, log_fields
from pods.errors import PodError
from pods.model import Container, Resources
from pods.oci.host_limits import check_host_limits
from pods.oci.resources import linux_resources, update_plan, updated
from pods.state.plugins import PluginEvent
from pods.state.transitions import can_update, is_over
from pods.undo import Undo
from runtime.errors import RuntimeCoreError
from runtime.wire.calls import Update

if TYPE_CHECKING:
    from pods.cgroups.driver import Cgroups
    from pods.host import HostFacts
    from pods.inflight import Background
    from pods.life.shims import Shims
    from pods.state.memory import State

_log = logging.getLogger("crisp.pods")
_FIELD: Final = "linux"  # of UpdateContainerResourcesRequest
_LIMITS: Final = ("memory", "cpu", "hugepageLimits", "unified")  # members of `linux.resources` that CRI sets


class ResourceUpdates:
    """Changes limits. If a change fails, the old limits stay in the kernel, in config.json and in the status."""

    def __init__(
        self, state: State, shims: Shims, host: HostFacts, cgroups: Cgroups, background: Background
    ) -> None:
        self._state = state
        self._cgroups = cgroups
        self._shims = shims
        self._host = host
        self._background = background

    async def update_container(self, container_id: str, wanted: Resources) -> None:
        """Set the given limits and leave the others. For a created container they apply at its start.

        Raises NotFound, InvalidArgument, and PodError if the kernel or a plugin refuses.
        """
        found = self._state.find_container(container_id).container.id
        await self._background.shielded(self._ask_and_update(found, wanted))

    async def update_for_plugin(self, container_id: str, wanted: Resources) -> None:
        """Set limits at a plugin's request; no other plugin is asked."""
        found = self._state.find_container(container_id).container.id
        await self._background.shielded(self._update_container(found, wanted))

    async def _ask_and_update(self, container_id: str, wanted: Resources) -> None:
        async with self._state.gate.passing():
            if (plugins := self._state.plugins) is None:
                await self._update_container(container_id, wanted)
                return
            container = self._state.find_container(container_id).container
            sandbox = self._state.find_sandbox(container.sandbox_id).sandbox
            # Not under the container's lock: the plugins' updates of other containers take those containers' locks.
            wanted = await plugins.updated(sandbox, container, wanted)
            await self._update_container(container_id, wanted)
            if (now := self._state.containers.get(container_id)) is not None:
                await self._state.happened(PluginEvent.POST_UPDATE, sandbox, now.container)

    async def _update_container(self, container_id: str, wanted: Resources) -> None:
        async with self._state.lock(container_id):
            container = self._state.find_container(container_id).container
            after = updated(container.resources, wanted)
            plan = update_plan(wanted, after, self._host, _FIELD)
            await asyncio.to_thread(check_host_limits, wanted, field=_FIELD)
            try:
                async with Undo(log_fields.of_container(container)) as undo:
                    await self._apply(container, plan, wanted.oom_score_adj)
                    undo.register("put the old limits back", self._apply, container, None, 0)
                    undo.register("tell the cgroup driver", self._tell_driver, container, {}, container.resources)
                    await self._tell_driver(container, plan, after)
                    await self._keep(container, after, undo)
                    undo.discard()
            except (RuntimeCoreError, OSError) as error:
                raise PodError(f"update container {container_id}: {error}") from error
        _log.info("container resources updated", extra=log_fields.of_container(container))

    async def _apply(self, container: Container, plan: dict[str, Any] | None, oom_score_adj: int) -> None:
        if not can_update(container):
            return
        shim = self._shims.of(container.sandbox_id)
        answer = await shim.call(Update(container.id, plan, oom_score_adj))
        for warning in answer.warnings:
            _log.warning("%s", warning, extra=log_fields.of_container(container))

    async def _tell_driver(self, container: Container, plan: dict[str, Any], after: Resources) -> None:
        """Give all limits to the cgroup driver. If that wrote the files itself, have the shim write the plan again.

        The shim comes first: systemd would not refuse a memory limit below the present use.
        """
        if is_over(container):
            return
        sandbox = self._state.find_sandbox(container.sandbox_id).sandbox
        limits = linux_resources(after, self._host, _FIELD)
        written = await self._cgroups.of(sandbox).update(sandbox, container.id, limits)
        if written and plan and can_update(container):
            await self._shims.ask(container.sandbox_id, Update(container.id, plan, again=True))

    async def _keep(self, container: Container, after: Resources, undo: Undo) -> None:
        """Make the limits durable: in config.json, which a start reads, and in the record."""
        directory = self._state.settings.bundle_dir(container.id)
        before = bundle.read_config(directory)
        if before is not None:  # gone after a reboot, when nothing can start any more
            undo.register("write the old config.json", bundle.write_config, directory, before)
            bundle.write_config(directory, _with_limits(before, after, self._host))
        record = self._state.containers[container.id]
        container = msgspec.structs.replace(record.container, updated=after)
        await self._state.save_container(msgspec.structs.replace(record, container=container))

    async def update_sandbox(self, sandbox_id: str, overhead: Resources | None, resources: Resources | None) -> None:
        """Record the pod's new totals. kubelet has already set them: the pod's cgroup is its own.

        Raises NotFound, and FailedPrecondition if the sandbox is not ready.
        """
        found = self._state.find_sandbox(sandbox_id).sandbox.id
        await self._background.shielded(self._ask_and_update_sandbox(found, overhead, resources))

    async def _ask_and_update_sandbox(
        self, sandbox_id: str, overhead: Resources | None, resources: Resources | None
    ) -> None:
        async with self._state.gate.passing():
            if self._state.plugins is not None:
                await self._state.plugins.sandbox_updates(
                    self._state.find_sandbox(sandbox_id).sandbox, overhead, resources
                )
            await self._update_sandbox(sandbox_id, overhead, resources)
            if (now := self._state.sandboxes.get(sandbox_id)) is not None:
                await self._state.happened(PluginEvent.POST_UPDATE_SANDBOX, now.sandbox)

    async def _update_sandbox(self, sandbox_id: str, overhead: Resources | None, resources: Resources | None) -> None:
        async with self._state.lock(sandbox_id):
            self._state.ready_sandbox(sandbox_id)
            record = self._state.find_sandbox(sandbox_id)
            changes = {name: value for name, value in (("overhead", overhead), ("resources", resources)) if value}
            sandbox = msgspec.structs.replace(record.sandbox, **changes)
            await self._state.save_sandbox(msgspec.structs.replace(record, sandbox=sandbox))


def _with_limits(document: dict[str, Any], limits: Resources, host: HostFacts) -> dict[str, Any]:
    kept = {name: value for name, value in document["linux"]["resources"].items() if name not in _LIMITS}
    resources = kept | linux_resources(limits, host, _FIELD)
    process = document["process"] | {"oomScoreAdj": limits.oom_score_adj}
    return document | {"process": process, "linux": document["linux"] | {"resources": resources}}
