"""Work that goes on to its end though whoever waits for it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

_T = TypeVar("_T")


class Tasks:
    """Tasks of one event loop, each referred to until it ends."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def undisturbed(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Await `work` to its end even when cancelled: what it changes on disk and in memory goes together."""
        task = self.start(work)
        try:
            return await asyncio.shield(task)
        finally:
            while not task.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([task])

    async def ended(self) -> None:
        """Return when none runs."""
        while self._running:
            await asyncio.wait(self._running)
