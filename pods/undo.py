"""Undoings by name: each step that makes something registers how to take it away again."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Final, ParamSpec

from network.errors import NetworkError
from pods.errors import PodError
from runtime.errors import RuntimeCoreError

_log: Final = logging.getLogger("crisp.pods")
_EXPECTED: Final = (PodError, RuntimeCoreError, NetworkError, OSError)  # any other is a fault of ours
_P = ParamSpec("_P")


class Undo:
    """Runs what was registered, the last first, when its block ends, unless `discard` was called before.

    The log names each undoing that runs. One that fails is logged and keeps no other from running: what is raised is
    what ended the block.
    """

    def __init__(self, fields: Mapping[str, object]) -> None:
        """`fields` tell in the log what is undone."""
        self._fields = fields
        self.failed = False  # whether one of those that ran did not succeed
        self._stack = contextlib.AsyncExitStack()

    def register(
        self, name: str, undoing: Callable[_P, Awaitable[object] | object], *args: _P.args, **kwargs: _P.kwargs
    ) -> None:
        """`name` completes "undo: ..." in the log."""

        async def run() -> None:
            _log.info("undo: %s", name, extra=self._fields)
            try:
                done = undoing(*args, **kwargs)
                if inspect.isawaitable(done):
                    await done
            except BaseException as error:
                self.failed = True
                if not isinstance(error, Exception):
                    raise
                trace = None if isinstance(error, _EXPECTED) else error
                _log.error("undo failed: %s", name, extra={**self._fields, "error": error}, exc_info=trace)

        self._stack.push_async_callback(run)

    def discard(self) -> None:
        """What was made stays."""
        self._stack.pop_all()

    async def __aenter__(self) -> Undo:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)
