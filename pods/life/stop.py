"""StopContainer, and the end of all containers of a pod that is stopped."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from pods.errors import NotFound
from pods.oci.signals import signal_number
from pods.state.transitions import can_start, can_stop
from runtime.client import ShimGone
from runtime.errors import RuntimeCoreError
from runtime.wire.calls import Kill, Signal

if TYPE_CHECKING:
    from pods.inflight import Background
    from pods.life.exit import Exits
    from pods.life.shims import Shims
    from pods.state.memory import State


class Stops:
    """Ends containers; what is under way goes on although its caller leaves."""

    def __init__(self, state: State, shims: Shims, exits: Exits, background: Background) -> None:
        self._state = state
        self._shims = shims
        self._exits = exits
        self._background = background

    async def stop(self, container_id: str, timeout: float) -> None:
        """Ask the container to end, and after `timeout` seconds make it. Unknown ids and exited ones succeed."""
        try:
            found = self._state.find_container(container_id).container.id
        except NotFound:
            return
        await self._background.shielded(self.stop_now(found, timeout))

    async def stop_now(self, container_id: str, timeout: float) -> None:
        """The same for a whole id, within the caller's task."""
        async with self._state.lock(container_id):
            record = self._state.containers.get(container_id)
        if record is None or not can_stop(record.container):
            return
        container = record.container
        try:
            shim = self._shims.of(container.sandbox_id)
            exited = self._state.exited(container_id)
            if timeout > 0:
                await shim.call(Signal(container_id, signal_number(container.stop_signal)))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(exited.wait(), timeout)
            if not exited.is_set():
                await shim.call(Kill(container_id))
            await exited.wait()
        except ShimGone:
            # Not left to whoever hears of the loss: what follows the stop takes the container for ended.
            sandbox = self._state.sandboxes.get(container.sandbox_id)
            await self._exits.end_unwatched(sandbox.sandbox if sandbox is not None else None, container)
        async with self._state.lock(container_id):
            pass  # plugins have heard of the exit, too

    async def stop_all(self, sandbox_id: str) -> None:
        """End every container of the sandbox now."""
        await asyncio.gather(*(self._end(container.id) for container in self._state.containers_of(sandbox_id)))

    async def orphaned(self, sandbox_id: str) -> None:
        """The sandbox's infra process is gone: its shim kills what runs, and what does not run never will."""
        for container in list(self._state.containers_of(sandbox_id)):
            if can_start(container):
                await self._end(container.id)

    async def _end(self, container_id: str) -> None:
        """Kill the container; one that does not run never will, for its sandbox, not ready any more, goes away."""
        record = self._state.containers.get(container_id)
        if record is not None and can_start(record.container):
            # A start may be under way, and hang while it holds the lock.
            with contextlib.suppress(RuntimeCoreError):
                await self._shims.of(record.container.sandbox_id).call(Kill(container_id))
        async with self._state.lock(container_id):
            record = self._state.containers.get(container_id)
        if record is not None and can_start(record.container):
            await self._exits.record_unseen(container_id)
        else:
            await self.stop_now(container_id, 0)
