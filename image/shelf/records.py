"""Runs the database in its own thread, for the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from image.shelf.database import Database, LayerRecord

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Records:
    """The database of one store. Belongs to the event loop that opened it."""

    def __init__(self, database: Database, thread: ThreadPoolExecutor) -> None:
        """Use `open` instead."""
        self._database = database
        self._thread = thread

    @classmethod
    async def open(cls, path: Path) -> Records:
        """Open or create the database. Raises StorageFull, ImageError."""
        with ExitStack() as undo:
            thread = ThreadPoolExecutor(1, "images")
            undo.callback(thread.shutdown)
            database = await asyncio.get_running_loop().run_in_executor(thread, Database, path)
            undo.pop_all()
        return cls(database, thread)

    async def close(self) -> None:
        await self.call(Database.close)
        self._thread.shutdown()

    async def call(self, method: Callable[Concatenate[Database, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a method of the database, after all earlier calls."""
        work = partial(method, self._database, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def keep_layers(self, layers: Sequence[LayerRecord]) -> None:
        """Record layers that no image has yet."""
        await self.call(Database.add_layers, layers)

    async def unkeep_layer(self, number: int) -> None:
        """Remove a layer that no image has, by its number: another one may have its chain id meanwhile."""
        await self.call(Database.remove_layer, number)

    async def forget_layers(self, chain_ids: Sequence[str]) -> None:
        """Remove layers that no image has."""
        await self.call(Database.remove, [], chain_ids)
