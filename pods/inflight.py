"""Runs requests that outlive their callers: identical requests join, and a result without a caller is undone.

kubelet gives up on a slow RunPodSandbox and repeats it with the same metadata. The first call's work goes on in a
task of its own, and the repeated call joins it. When every caller of a request is gone its result is undone, because
nobody has learnt its id; a repeated call then waits for that and starts anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from pods.errors import AlreadyExists

_log = logging.getLogger("crisp.pods")
_T = TypeVar("_T")
_UNWIND_SECONDS = 2.0


class _Flight:
    def __init__(self, request: object, task: asyncio.Task[str]) -> None:
        self.request = request
        self.task = task
        self.waiters = 0
        self.delivered = False
        self.undoing: asyncio.Task[None] | None = None


class Flights:
    """Requests in flight, by the name that each will hold."""

    def __init__(self, background: Background) -> None:
        self._flights: dict[object, _Flight] = {}
        self._background = background

    async def run(
        self,
        name: object,
        request: object,
        make: Callable[[], Coroutine[Any, Any, str]],
        undo: Callable[[str], Awaitable[None]],
        made: Callable[[], str | None] = lambda: None,
    ) -> str:
        """Run `make`, or join the same request in flight. Returns the id of what was made.

        `made` is called before `make` when nothing is in flight for the name: it returns the id of an object that an
        earlier request made, raises AlreadyExists, or returns None. Raises AlreadyExists while a different request
        holds the name, and whatever `make` raises.
        """
        while (flight := self._flights.get(name)) is not None:
            if flight.undoing is None and flight.request == request:
                break
            if flight.undoing is None and flight.waiters:
                raise AlreadyExists(f"name {name!r} is reserved by a different request that is under way")
            await asyncio.wait({flight.undoing or flight.task})
        if flight is None:
            # Only here: an object made for callers that went away exists until it is undone.
            if (earlier := made()) is not None:
                return earlier
            flight = _Flight(request, self._background.start(make()))
            self._flights[name] = flight
        flight.waiters += 1
        try:
            result = await asyncio.shield(flight.task)
            flight.delivered = True
            return result
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                if flight.task.done():
                    self._land(name, flight, undo)
                else:
                    flight.task.add_done_callback(lambda _task: self._land(name, flight, undo))

    def _land(self, name: object, flight: _Flight, undo: Callable[[str], Awaitable[None]]) -> None:
        """Forget the finished work, after undoing it if no caller took the result."""
        if flight.waiters or flight.undoing is not None or self._flights.get(name) is not flight:
            return
        if flight.delivered or flight.task.cancelled() or flight.task.exception() is not None:
            del self._flights[name]
            return

        async def undo_it() -> None:
            try:
                _log.info("every caller has gone away: undoing the result", extra={"id": flight.task.result()})
                await undo(flight.task.result())
            finally:
                del self._flights[name]

        flight.undoing = self._background.detach(undo_it(), "undo an abandoned request")


class Background:
    """Tasks that outlive the handler that started them; `drain` waits for them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def detach(self, work: Coroutine[Any, Any, _T], purpose: str) -> asyncio.Task[_T]:
        """Start work that nobody waits for; a failure is logged."""
        task = self.start(work)

        def tell(ended: asyncio.Task[_T]) -> None:
            if not ended.cancelled() and (failure := ended.exception()) is not None:
                _log.error("%s: %s", purpose, failure, exc_info=failure)

        task.add_done_callback(tell)
        return task

    async def shielded(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Wait for `work`; cancelling the wait does not cancel the work."""
        return await asyncio.shield(self.start(work))

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # mark it as retrieved: waiters get it as well, or `detach` logged it

    async def drain(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for the tasks; then cancel the rest and give them time to undo their work."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_UNWIND_SECONDS)
