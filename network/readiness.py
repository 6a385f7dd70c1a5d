"""Asks the plugins of a list for their STATUS (from version 1.1.0 on) in the background."""

from __future__ import annotations

import asyncio

from network.chain import Chain
from network.conflist import ConfList
from network.errors import NetworkError

FRESH_SECONDS = 10.0


class Readiness:
    """Keeps the last STATUS of the current list. Asks when the list changes and when the answer is too old."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._conflist: ConfList | None = None
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = 0.0
        self._problem = ""

    def follow(self, conflist: ConfList | None) -> None:
        """Ask the plugins of another list from now on. A list older than 1.1.0 is always ready."""
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        self._conflist = conflist if conflist is not None and conflist.at_least("1.1.0") else None
        self._problem = "" if self._conflist is None else "the plugins have not reported their status yet"
        if self._conflist is not None:
            self._ask(self._conflist)

    def problem(self) -> str:
        """Return why the plugins cannot serve an ADD, "" if they can. If the answer is old, ask again in background."""
        idle = self._asking is None or self._asking.done()
        if self._conflist is not None and idle and self._now() - self._asked_at >= FRESH_SECONDS:
            self._ask(self._conflist)
        return self._problem

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    def _ask(self, conflist: ConfList) -> None:
        self._asked_at = self._now()
        self._asking = asyncio.create_task(self._answer(conflist), name="CNI STATUS")

    async def _answer(self, conflist: ConfList) -> None:
        try:
            await self._chain.status(conflist)
            self._problem = ""
        except NetworkError as error:
            self._problem = str(error)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
