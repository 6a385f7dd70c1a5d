"""Keeps the network free of what belongs to no pod: at the start, after a failed ADD, and every hour.

Attachments that this daemon or an earlier one began, and whose pod is gone, are removed by DEL. The plugins' own GC, of
CNI 1.1, then removes what nobody remembers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from network.errors import NetworkBusy, NetworkError
from pods.life.pod_end import attachment_of

if TYPE_CHECKING:
    from network.model import Attachment
    from network.network import Network
    from pods.life.sandboxes import Sandboxes
    from pods.state.memory import State

_HOUR: Final = 3600.0
_BUSY_SECONDS: Final = 30.0
_log = logging.getLogger("crisp.pods")


class NetworkUpkeep:
    """Runs `Network.gc` in the background, one at a time."""

    def __init__(self, state: State, network: Network, sandboxes: Sandboxes) -> None:
        self._state = state
        self._network = network
        self._sandboxes = sandboxes
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Clean up now, and from now on."""
        self._wanted.set()
        self._sandboxes.on_network_failure = self._wanted.set
        self._task = asyncio.create_task(self._run(), name="network upkeep")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def valid(self) -> Iterator[Attachment]:
        """Yield the attachments of pods that exist or are being made. Others are orphans."""
        for record in self._state.sandboxes.values():
            if record.network:
                yield attachment_of(record.sandbox)
        yield from self._sandboxes.being_attached()

    async def _run(self) -> None:
        pause = _HOUR
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), pause)
            self._wanted.clear()
            pause = _HOUR
            try:
                await self._network.gc(list(self.valid()))
            except NetworkBusy:
                pause = _BUSY_SECONDS
            except (NetworkError, OSError) as error:
                _log.warning("could not clean up the network; trying again in an hour", extra={"error": error})
