"""How many layers are worked at at a time, and for how long each may keep others waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_PATIENCE_SECONDS = 10.0
_FOR_TREES = 2 / 3  # of the workers' memory; the rest is for their buffers and for what they have written


def at_once(processors: int, memory: int, tree: int) -> int:
    """Return how many layers a node works at at a time.

    A worker keeps a processor busy while bytes come: two for each, and two more, so that there is work while some wait
    for the network. Others would take memory, 3 to 6 MB each, and finish nothing earlier. `memory` is the workers'
    limit together, in bytes, 0 for none: layers may be made so that each takes `tree` of it.
    """
    wanted = 2 * processors + 2
    return min(wanted, max(1, int(memory * _FOR_TREES / tree))) if memory else wanted


class Turns:
    """Lets so many work at a time. Who takes longer than `patience` seconds goes on, but keeps no others waiting.

    Without that, a few pulls from a slow registry would keep those from all others waiting.
    """

    def __init__(self, number: int, patience: float = _PATIENCE_SECONDS) -> None:
        self._free = asyncio.Semaphore(number)
        self._patience = patience

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Wait for a turn, and have it for the time of the context."""
        await self._free.acquire()
        held = True

        def give_back() -> None:
            nonlocal held
            if held:
                held = False
                self._free.release()

        late = asyncio.get_running_loop().call_later(self._patience, give_back)
        try:
            yield
        finally:
            late.cancel()
            give_back()
