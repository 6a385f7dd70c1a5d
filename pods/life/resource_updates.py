"""UpdateContainerResources and UpdatePodSandboxResources."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pods import bundle, log_fields
from pods.errors import PodError
from pods.model import Container, Resources
from pods.oci.cgroups import linux_resources, update_plan, updated
from pods.oci.host_limits import check_host_limits
from pods.state.plugins import Moment
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
_LIMITS: Final = ("memory", "cpu", "hugepageLimits", "unified")  # of `linux.resources`, those that CRI sets


class ResourceUpdates:
    """Changes of limits; one that fails leaves the old ones in the kernel, in config.json and in the status."""

    def __init__(
        self, state: State, shims: Shims, host: HostFacts, cgroups: Cgroups, background: Background
    ) -> None:
        self._state = state
        self._cgroups = cgroups
        self._shims = shims
        self._host = host
        self._background = background

    async def update_container(self, container_id: str, wanted: Resources) -> None:
        """Set the limits given, leave the others. What does not run only has its status (and its start) changed.

        Raises NotFound, InvalidArgument, and PodError when the kernel refuses, or a plugin.
        """
        found = self._state.find_container(container_id).container.id
        await self._background.shielded(self._ask_and_update(found, wanted))

    async def update_for_plugin(self, container_id: str, wanted: Resources) -> None:
        """The same, asked for by a plugin: the others have no say."""
        found = self._state.find_container(container_id).container.id
        await self._background.shielded(self._update_container(found, wanted))

    async def _ask_and_update(self, container_id: str, wanted: Resources) -> None:
        async with self._state.gate.passing():
            if (plugins := self._state.plugins) is None:
                await self._update_container(container_id, wanted)
                return
            container = self._state.find_container(container_id).container
            sandbox = self._state.find_sandbox(container.sandbox_id).sandbox
            # Not under the container's lock: what they want of other containers takes theirs.
            wanted = await plugins.updated(sandbox, container, wanted)
            await self._update_container(container_id, wanted)
            if (now := self._state.containers.get(container_id)) is not None:
                await self._state.happened(Moment.POST_UPDATE, sandbox, now.container)

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
        """Have the cgroup driver know all the limits, and the plan's written again where it wrote its own.

        It comes second: systemd would not refuse memory that is in use.
        """
        if is_over(container):
            return
        sandbox = self._state.find_sandbox(container.sandbox_id).sandbox
        limits = linux_resources(after, self._host, _FIELD)
        written = await self._cgroups.of(sandbox).update(sandbox, container.id, limits)
        if written and plan and can_update(container):
            await self._shims.of(container.sandbox_id).call(Update(container.id, plan, again=True))

    async def _keep(self, container: Container, after: Resources, undo: Undo) -> None:
        """Make the limits durable: in config.json, which a start reads, and in the record."""
        directory = self._state.settings.bundle_dir(container.id)
        before = bundle.read_config(directory)
        if before is not None:  # a reboot takes it, and with it all that could start
            undo.register("write the old config.json", bundle.write_config, directory, before)
            bundle.write_config(directory, _with_limits(before, after, self._host))
        record = self._state.containers[container.id]
        container = msgspec.structs.replace(record.container, updated=after)
        await self._state.save_container(msgspec.structs.replace(record, container=container))

    async def update_sandbox(self, sandbox_id: str, overhead: Resources | None, resources: Resources | None) -> None:
        """Keep what kubelet tells of the pod's sums. The pod's cgroup is kubelet's own, and set by it before.

        Raises NotFound, and FailedPrecondition for a sandbox that is not ready.
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
                await self._state.happened(Moment.POST_UPDATE_SANDBOX, now.sandbox)

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
