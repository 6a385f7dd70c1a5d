"""Recovers the state after a crash, from the database, living shims, and files in the state directory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from network.errors import NetworkError
from pods import log_fields
from pods.errors import PodError
from pods.model import SandboxState
from pods.state.store import ContainerRecord, SandboxRecord
from pods.state.transitions import Ran, Started, can_start, is_over
from runtime.client import ShimClient, ShimGone, ShimSilent
from runtime.errors import RuntimeCoreError
from runtime.wire import calls
from runtime.wire.states import RUNNING, STARTING

if TYPE_CHECKING:
    from image.store import ImageStore
    from network.network import Network
    from pods.inflight import Background
    from pods.life.creation import Creations
    from pods.life.exit import Exits
    from pods.life.removal import Removals
    from pods.life.sandboxes import Sandboxes
    from pods.life.shims import Shims
    from pods.life.stop import Stops
    from pods.state.memory import State

_log = logging.getLogger("crisp.pods")
_ANSWER_SECONDS: Final = 5.0


class Recovery:
    """Corrects the state of sandboxes and containers, when the daemon starts and when a shim is lost."""

    def __init__(
        self,
        state: State,
        shims: Shims,
        network: Network,
        sandboxes: Sandboxes,
        exits: Exits,
        stops: Stops,
        removals: Removals,
        background: Background,
        creations: Creations,
    ) -> None:
        self._creations = creations
        self._state = state
        self._shims = shims
        self._network = network
        self._sandboxes = sandboxes
        self._exits = exits
        self._stops = stops
        self._removals = removals
        self._background = background

    async def recover(self, images: ImageStore, records: tuple[list[SandboxRecord], list[ContainerRecord]]) -> None:
        """Take over an earlier daemon's `records`: adopt living shims, record exits, undo what was unfinished."""
        finished = [record for record in records[0] if record.finished]
        self._state.sandboxes.update((record.sandbox.id, record) for record in finished)
        for record in finished:
            self._state.recorder.found_again(record.sandbox.id, record.sandbox.config.metadata)
        for container_record in records[1]:
            container = container_record.container
            for image_id in container.images:
                images.hold(image_id)
            if container_record.finished:
                self._state.containers[container.id] = container_record
                self._state.recorder.container(container.sandbox_id, container.id, container.config.metadata.name, "")
                if is_over(container):
                    self._state.exited(container.id).set()
        self._state.recorder.knows_all()
        await asyncio.gather(*(self._adopt(record) for record in records[0]))
        for container_record in records[1]:
            if not container_record.finished:
                with _survived("undo unfinished container", container_record.container.id):
                    await self._removals.discard_unfinished(container_record.container)
        await self._clean_state_directory()

    async def sandbox_lost(self, sandbox_id: str) -> None:
        """Handle the end of a shim's connection or of an infra process. A shim that still lives is connected again."""
        with contextlib.suppress(ShimGone):
            self._shims.of(sandbox_id)
            await self._sandboxes.lost(sandbox_id)
            await self._stops.orphaned(sandbox_id)
            return
        record = self._state.sandboxes.get(sandbox_id)
        if record is not None and record.sandbox.state is SandboxState.READY:
            await self._adopt(record)
        else:
            await self._without_shim(sandbox_id)

    async def heard_again(self, sandbox_id: str, now: calls.ShimState) -> None:
        """Learn what happened while a shim did not answer, and undo what was asked of it then."""
        record = self._state.sandboxes.get(sandbox_id)
        if record is None:  # it is being made
            if not now.infra_alive:
                await self._sandboxes.lost(sandbox_id)
            return
        shim = self._shims.of(sandbox_id)
        await self._catch_up(record, shim, now)
        for container_id in now.containers:
            if container_id not in {*self._state.containers, *self._creations.in_the_making()}:
                # Asked for before the silence, and given up; the shim made it afterwards.
                with _survived("delete a container that was given up", container_id):
                    await shim.call(calls.Delete(container_id))

    async def _adopt(self, record: SandboxRecord) -> None:
        sandbox_id = record.sandbox.id
        shim = self._find(sandbox_id)
        if not record.finished:
            with _survived("undo unfinished pod sandbox", sandbox_id):
                await self._sandboxes.discard(record)
            return
        if shim is not None:
            try:
                now = await asyncio.wait_for(shim.call(calls.GetState()), _ANSWER_SECONDS)
                await self._catch_up(record, shim, now)
                return
            except ShimGone:
                pass
            except (TimeoutError, ShimSilent):
                shim.set_apart()
                fields = log_fields.of_sandbox(record.sandbox)
                _log.error("the pod sandbox keeps its last known state until its shim answers", extra=fields)
                return
        await self._without_shim(sandbox_id)

    def _find(self, sandbox_id: str) -> ShimClient | None:
        try:
            return self._shims.find(sandbox_id)
        except ShimGone:
            return None

    async def _without_shim(self, sandbox_id: str) -> None:
        """Record that nothing of the pod runs: its shim died, or the machine was rebooted."""
        self._shims.end_infra(sandbox_id)
        await self._sandboxes.lost(sandbox_id)
        await self._exits.lost(sandbox_id)

    async def _catch_up(self, record: SandboxRecord, shim: ShimClient, now: calls.ShimState) -> None:
        """Record what happened while no daemon listened, or the shim did not speak. Raises ShimGone, ShimSilent."""
        if not now.kept:
            self._shims.keep(record.sandbox.id)
        if not now.infra_alive and record.sandbox.state is SandboxState.READY:
            await self._sandboxes.lost(record.sandbox.id)
        for container in list(self._state.containers_of(record.sandbox.id)):
            known = now.containers.get(container.id)
            if known is None:
                if self._state.containers[container.id].finished and not is_over(container):
                    await self._exits.end_unwatched(record.sandbox, container)
            elif known.state == STARTING:
                following = self._follow_start(container.id, shim)
                self._background.detach(following, f"follow the start of container {container.id}")
            else:
                await self._learn(container.id, known)
                if known.state == RUNNING and self._is_over(container.id):
                    await shim.call(calls.Kill(container.id))  # its start was answered as failed

    async def _follow_start(self, container_id: str, shim: ShimClient) -> None:
        """Wait for a start that an earlier daemon asked for."""
        async with self._state.lock(container_id):
            known = await shim.call(calls.WaitStart(container_id))
            await self._learn_start(container_id, known)
        await self._learn(container_id, known)
        if known.state == RUNNING and self._is_over(container_id):
            await shim.call(calls.Kill(container_id))  # as in `_catch_up`

    def _is_over(self, container_id: str) -> bool:
        record = self._state.containers.get(container_id)
        return record is not None and is_over(record.container)

    async def _learn_start(self, container_id: str, known: calls.ContainerStatus) -> None:
        """Record the start, if that has not been done. The caller holds the container's lock."""
        record = self._state.containers.get(container_id)
        if record is None or not known.started_at:
            return
        if can_start(record.container):
            await self._state.record(container_id, Started(pid=known.pid, at=known.started_at))
        elif not record.container.started_at:
            await self._state.record(container_id, Ran(known.started_at))

    async def _learn(self, container_id: str, known: calls.ContainerStatus) -> None:
        async with self._state.lock(container_id):
            await self._learn_start(container_id, known)
        if known.exit is not None:
            await self._exits.record(container_id, known.exit)

    async def remove_unknown(self, sandbox_id: str) -> None:
        """Remove what is left of a pod without a record. Raises NetworkError, RuntimeCoreError, PodError, OSError."""
        self._find(sandbox_id)
        for attachment in self._network.attachments():
            if attachment.sandbox_id == sandbox_id:
                # While there is a namespace: without it plugins leave what they cannot find any more.
                with _survived("remove the network of an unknown pod sandbox", sandbox_id):
                    await self._network.remove(attachment)
        await self._shims.end(sandbox_id)
        self._shims.unpin(self._state.settings.netns_path(sandbox_id))
        shutil.rmtree(self._state.settings.sandbox_dir(sandbox_id), ignore_errors=True)

    async def _clean_state_directory(self) -> None:
        """Remove shims and directories without a record: the daemon died before the record was on disk."""
        sandboxes = self._state.settings.state / "sandboxes"
        for directory in sandboxes.iterdir() if sandboxes.is_dir() else ():
            if directory.name in self._state.sandboxes:
                continue
            _log.info("removing the remains of an unfinished pod sandbox", extra={"sandbox": directory.name})
            with _survived("remove unknown pod sandbox", directory.name):
                await self.remove_unknown(directory.name)
        for parent in (self._state.settings.state / "containers", self._state.settings.root / "containers"):
            there = list(parent.iterdir()) if parent.is_dir() else ()
            self._state.garbage.put(place for place in there if place.name not in self._state.containers)


@contextlib.contextmanager
def _survived(operation: str, object_id: str) -> Iterator[None]:
    """Log an error and go on: one object that cannot be undone must not keep the daemon from serving the others."""
    try:
        yield
    except (NetworkError, PodError, RuntimeCoreError, OSError) as error:
        _log.error("%s failed", operation, extra={"id": object_id, "error": error})
