"""Tasks that finish even if their waiters are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

_T = TypeVar("_T")


async def opened(open: Callable[[], _T], close: Callable[[_T], object]) -> _T:
    """Open something in a thread. If the caller is cancelled meanwhile, it is closed as soon as it is open."""
    opening = asyncio.ensure_future(asyncio.to_thread(open))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(lambda done: done.exception() or close(done.result()))
        raise


class Tasks:
    """Tasks of one event loop; keeps a reference to each until it ends."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def undisturbed(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Await `work` to its end even if cancelled: its changes on disk and in memory belong together."""
        task = self.start(work)
        try:
            return await asyncio.shield(task)
        finally:
            while not task.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([task])

    async def ended(self) -> None:
        """Wait until no task is running."""
        while self._running:
            await asyncio.wait(self._running)
