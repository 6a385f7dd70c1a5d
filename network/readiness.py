"""What the plugins of a list say of themselves (STATUS, from version 1.1.0 on), asked in the background."""

from __future__ import annotations

import asyncio

from network.chain import Chain
from network.conflist import ConfList
from network.errors import NetworkError

FRESH_SECONDS = 10.0


class Readiness:
    """The last answer of the list that is followed. Asked when the list changes, and again when an answer got old."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._conflist: ConfList | None = None
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = 0.0
        self._complaint = ""

    def follow(self, conflist: ConfList | None) -> None:
        """Ask the plugins of another list from now on; those of a list older than 1.1.0 never complain."""
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        self._conflist = conflist if conflist is not None and conflist.at_least("1.1.0") else None
        self._complaint = "" if self._conflist is None else "the plugins have not told their status yet"
        if self._conflist is not None:
            self._ask(self._conflist)

    def complaint(self) -> str:
        """Why the plugins cannot serve an ADD; "" when they can. Starts the next asking if this answer is old."""
        idle = self._asking is None or self._asking.done()
        if self._conflist is not None and idle and self._now() - self._asked_at >= FRESH_SECONDS:
            self._ask(self._conflist)
        return self._complaint

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
            self._complaint = ""
        except NetworkError as error:
            self._complaint = str(error)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
