"""The life of pod sandboxes: RunPodSandbox, StopPodSandbox, RemovePodSandbox."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec

from network.errors import NetworkError
from pods import log_fields
from pods.errors import AlreadyExists, NotFound, PodError
from pods.handlers import check_handler
from pods.inflight import Background, Flights
from pods.life.pod_creation import PodCreation
from pods.life.pod_end import attachment_of
from pods.log_fields import pod_name
from pods.model import SandboxConfig, SandboxState
from pods.security.selinux import level_of
from pods.state.plugins import PluginEvent
from pods.state.store import SandboxRecord
from pods.undo import Undo
from runtime.client import ShimSilent
from runtime.errors import RuntimeCoreError

if TYPE_CHECKING:
    from network.model import Attachment
    from pods.host import HostFacts
    from pods.life.pod_creation import Content
    from pods.life.pod_end import PodEnd
    from pods.life.removal import Removals
    from pods.life.stop import Stops
    from pods.trace import Trace

_log = logging.getLogger("crisp.pods")


class Sandboxes:
    """Makes, stops and removes sandboxes. Each operation is idempotent and goes on if its caller goes away."""

    def __init__(
        self, end: PodEnd, stops: Stops, removals: Removals, host: HostFacts, background: Background
    ) -> None:
        self._end = end
        self._state, self._shims = end.state, end.shims
        self._stops = stops
        self._removals = removals
        self._host = host
        self._background = background
        self._flights = Flights(background)
        self._making: dict[str, PodCreation] = {}  # by sandbox id, until they are made or undone
        self.on_network_failure: Callable[[], None] = lambda: None

    # -- run ----------------------------------------------------------------------------------------------------------

    async def run(
        self, config: SandboxConfig, handler: str, trace: Trace, content: Content | None = None, request: object = None
    ) -> str:
        """Make a sandbox, with its containers if `content` is given, and return its id.

        `request` is what a repeated request must have in common with this one, beside configuration and handler. See
        `Flights` for repeated and abandoned requests.
        """
        check_handler(handler, config, self._state.settings.runtime_handlers)
        return await self._flights.run(
            pod_name(config),
            (config, handler, request),
            lambda: self._make(config, handler, trace, content),
            self._undo,
            made=lambda: self._made(config),
        )

    def _made(self, config: SandboxConfig) -> str | None:
        """Return the id of the sandbox that the same request made. Raises AlreadyExists if another has the name."""
        held = self._holder(config)
        if held is None:
            return None
        if held.sandbox.config == config and held.sandbox.state is SandboxState.READY:
            return held.sandbox.id
        raise AlreadyExists(f"name {pod_name(config)!r} is held by pod sandbox {held.sandbox.id} until it is removed")

    def _holder(self, config: SandboxConfig) -> SandboxRecord | None:
        metadata = config.metadata
        return next((r for r in self._state.sandboxes.values() if r.sandbox.config.metadata == metadata), None)

    async def _make(self, config: SandboxConfig, handler: str, trace: Trace, content: Content | None) -> str:
        sandbox_id = secrets.token_hex(32)
        recorder = self._state.recorder
        recorder.sandbox(sandbox_id, config.metadata, "begun")
        told = recorder.within(sandbox_id, "").said
        try:
            async with Undo({"sandbox": sandbox_id, "pod": pod_name(config)}, told) as undo:
                making = self._making[sandbox_id] = PodCreation(
                    self._end, self._host, sandbox_id, config, handler, self._level(config), trace, undo, content
                )
                sandbox = await making.run()
                undo.discard()
            if making.lost:  # while it was written, as ready
                self._shims.lose(sandbox_id)
        except NetworkError:
            self.on_network_failure()
            raise
        finally:
            self._making.pop(sandbox_id, None)
        _log.info("pod sandbox made", extra=log_fields.of_sandbox(sandbox) | {"ips": ",".join(sandbox.ips)})
        return sandbox_id

    def _level(self, config: SandboxConfig) -> str:
        """Return the SELinux level of a new pod, which no other pod has; "" for none."""
        if not self._state.settings.selinux:
            return ""
        others = (making.sandbox for making in self._making.values())
        taken = {one.selinux_level for one in (*others, *(record.sandbox for record in self._state.sandboxes.values()))}
        return level_of(config, self._host, taken)

    def in_the_making(self) -> Iterator[str]:
        """Yield the ids of sandboxes that are being made or undone."""
        yield from self._making

    def being_attached(self) -> Iterator[Attachment]:
        """Yield the network attachments of sandboxes that are being made or undone."""
        for making in self._making.values():
            yield attachment_of(making.sandbox)

    async def _undo(self, sandbox_id: str) -> None:
        """Undo a sandbox whose id no caller has. Mark it unfinished first, so that a crash does not keep its name."""
        record = self._state.sandboxes[sandbox_id]
        await self._state.save_sandbox(msgspec.structs.replace(record, finished=False))
        try:
            await self.remove(sandbox_id)
        except (NetworkError, RuntimeCoreError, PodError, OSError) as error:
            record = self._state.sandboxes[sandbox_id]
            fields = log_fields.of_sandbox(record.sandbox) | {"undo": error}
            _log.error("could not undo the pod sandbox: it stays NotReady until kubelet's next stop", extra=fields)
            await self._state.save_sandbox(msgspec.structs.replace(record, finished=True))

    # -- stop ---------------------------------------------------------------------------------------------------------

    async def stop(self, sandbox_id: str) -> None:
        """Kill the containers and remove all kernel objects of the sandbox. Succeeds for an unknown id."""
        try:
            found = self._state.find_sandbox(sandbox_id).sandbox.id
        except NotFound:
            return
        await self._background.shielded(self._stop(found))

    async def _stop(self, sandbox_id: str) -> None:
        async with self._state.lock(sandbox_id):
            record = self._state.sandboxes.get(sandbox_id)
            if record is None or record.stopped:
                return
            self._state.stopping.add(sandbox_id)
            try:
                await self._stop_begun(record)
            finally:
                self._state.stopping.discard(sandbox_id)

    async def _stop_begun(self, record: SandboxRecord) -> None:
        sandbox_id = record.sandbox.id
        if record.sandbox.state is SandboxState.READY:
            sandbox = msgspec.structs.replace(record.sandbox, state=SandboxState.NOT_READY)
            record = msgspec.structs.replace(record, sandbox=sandbox)
            await self._state.save_sandbox(record)
        await self._end_containers(sandbox_id)
        await self._state.happened(PluginEvent.STOP_SANDBOX, record.sandbox)
        await self._end.tear_down(record)
        sandbox = msgspec.structs.replace(record.sandbox, infra_pid=0, netns="")
        await self._state.save_sandbox(msgspec.structs.replace(record, sandbox=sandbox, network=False, stopped=True))
        _log.info("pod sandbox stopped", extra=log_fields.of_sandbox(sandbox))

    async def _end_containers(self, sandbox_id: str) -> None:
        try:
            await self._stops.stop_all(sandbox_id)
        except ShimSilent:
            # It would keep the pod for ever. Its containers end as those of any lost shim.
            await self._shims.kill(sandbox_id)
            await self._stops.stop_all(sandbox_id)

    async def lost(self, sandbox_id: str) -> None:
        """Mark the sandbox not ready: its shim or infra process is gone, so nothing in it runs."""
        record = self._state.sandboxes.get(sandbox_id)
        if record is None and (making := self._making.get(sandbox_id)) is not None:
            making.lost = True
            fields = log_fields.of_sandbox(making.sandbox)
            _log.error("pod sandbox lost its shim or infra process while it was made", extra=fields)
        elif record is not None and record.sandbox.state is SandboxState.READY:
            sandbox = msgspec.structs.replace(record.sandbox, state=SandboxState.NOT_READY)
            await self._state.save_sandbox(msgspec.structs.replace(record, sandbox=sandbox))
            _log.error("pod sandbox lost its shim or infra process", extra=log_fields.of_sandbox(sandbox))

    # -- remove -------------------------------------------------------------------------------------------------------

    async def remove(self, sandbox_id: str) -> None:
        """Stop the sandbox if needed; remove its containers, files and name. Succeeds for an unknown id."""
        try:
            found = self._state.find_sandbox(sandbox_id).sandbox.id
        except NotFound:
            return
        await self._background.shielded(self._remove(found))

    async def _remove(self, sandbox_id: str) -> None:
        await self._stop(sandbox_id)
        for container in list(self._state.containers_of(sandbox_id)):
            await self._removals.remove(container.id)
        async with self._state.lock(sandbox_id):
            if (record := self._state.sandboxes.get(sandbox_id)) is not None:
                await self._end.erase(sandbox_id)
                await self._state.happened(PluginEvent.REMOVE_SANDBOX, record.sandbox)
                _log.info("pod sandbox removed", extra=log_fields.of_sandbox(record.sandbox))

    async def discard(self, record: SandboxRecord) -> None:
        """Undo a sandbox that an earlier daemon left unfinished."""
        async with Undo(log_fields.of_sandbox(record.sandbox)) as undo:
            self._end.register(record, undo)
