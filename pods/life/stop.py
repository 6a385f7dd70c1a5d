"""StopContainer, and the end of all containers when their pod stops."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from pods.errors import NotFound
from pods.oci.signals import signal_number
from pods.state.transitions import can_start, can_stop
from runtime.client import ShimGone
from runtime.errors import RuntimeCoreError
from runtime.wire.calls import Kill, Signal, Sync

if TYPE_CHECKING:
    from pods.inflight import Background
    from pods.life.exit import Exits
    from pods.life.shims import Shims
    from pods.state.memory import State
    from runtime.client import ShimClient

_ASK_SECONDS: Final = 10.0


class Stops:
    """Stops containers. A stop goes on if its caller goes away."""

    def __init__(self, state: State, shims: Shims, exits: Exits, background: Background) -> None:
        self._state = state
        self._shims = shims
        self._exits = exits
        self._background = background

    async def stop(self, container_id: str, timeout: float) -> None:
        """Signal the container, and kill it after `timeout` seconds. Succeeds for an unknown or exited container."""
        try:
            found = self._state.find_container(container_id).container.id
        except NotFound:
            return
        await self._background.shielded(self.stop_now(found, timeout))

    async def stop_now(self, container_id: str, timeout: float) -> None:
        """Like `stop`, for a full id and within the caller's task."""
        async with self._state.lock(container_id):
            record = self._state.containers.get(container_id)
        if record is None or not can_stop(record.container):
            return
        container = record.container
        shim: ShimClient | None = None
        try:
            shim = self._shims.of(container.sandbox_id)
            exited = self._state.exited(container_id)
            teller = self._state.recorder.part(container_id)
            self._state.ending.add(container_id)
            if timeout > 0:
                teller.said(f"stop: {container.stop_signal}, with {timeout:g} s to end")
                await shim.call(Signal(container_id, signal_number(container.stop_signal)))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout):  # unlike wait_for it needs no task
                        await exited.wait()
            if not exited.is_set():
                teller.said("stop: SIGKILL")
                await shim.call(Kill(container_id))
            await _ended(shim, exited)
        except ShimGone:
            if shim is not None and self._shims.has_successor(container.sandbox_id, shim):
                await self.stop_now(container_id, timeout)
                return
            # Do not wait for the handling of the lost shim: the caller relies on the container having ended.
            sandbox = self._state.sandboxes.get(container.sandbox_id)
            await self._exits.end_unwatched(sandbox.sandbox if sandbox is not None else None, container)
        async with self._state.lock(container_id):
            pass  # wait until plugins have heard of the exit as well

    async def stop_all(self, sandbox_id: str) -> None:
        """End every container of the sandbox at once."""
        await asyncio.gather(*(self._end(container.id) for container in self._state.containers_of(sandbox_id)))

    async def orphaned(self, sandbox_id: str) -> None:
        """Record created containers as exited after the infra process died; the shim kills the running ones."""
        for container in list(self._state.containers_of(sandbox_id)):
            if can_start(container):
                await self._end(container.id)

    async def _end(self, container_id: str) -> None:
        """Kill the container. One that does not run is recorded as exited: its sandbox is going away."""
        record = self._state.containers.get(container_id)
        if record is not None and can_start(record.container):
            # A start may hang while it holds the lock: kill before taking the lock.
            with contextlib.suppress(RuntimeCoreError):
                await self._shims.ask(record.container.sandbox_id, Kill(container_id))
        async with self._state.lock(container_id):
            record = self._state.containers.get(container_id)
        if record is not None and can_start(record.container):
            await self._exits.record_unseen(container_id)
        else:
            await self.stop_now(container_id, 0)


async def _ended(shim: ShimClient, exited: asyncio.Event) -> None:
    """Wait for the exit as long as the shim, which reports it, answers. Raises ShimGone, ShimSilent."""
    while True:
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                await exited.wait()
            return
        except TimeoutError:
            await shim.call(Sync())
