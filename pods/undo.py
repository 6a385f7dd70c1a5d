"""Named clean-ups: each step that makes something registers how to remove it."""

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
_EXPECTED: Final = (PodError, RuntimeCoreError, NetworkError, OSError)  # others are bugs: log a traceback
_P = ParamSpec("_P")


class Undo:
    """Runs the registered clean-ups, last first, when its block ends, unless `discard` was called.

    Each one is logged by name. One that fails is logged and does not keep the others from running; what is raised is
    what ended the block.
    """

    def __init__(self, fields: Mapping[str, object], told: Callable[[str], object] = lambda _text: None) -> None:
        """`fields` identify the object in log lines; `told` is called with each clean-up that runs."""
        self._fields = fields
        self._told = told
        self.failed = False  # whether a clean-up failed
        self._stack = contextlib.AsyncExitStack()

    def register(
        self, name: str, undoing: Callable[_P, Awaitable[object] | object], *args: _P.args, **kwargs: _P.kwargs
    ) -> None:
        """Add a clean-up. `name` completes "undo: ..." in the log."""

        async def run() -> None:
            _log.info("undo: %s", name, extra=self._fields)
            self._told(f"undo: {name}")
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
        """Keep what was made: run no clean-up."""
        self._stack.pop_all()

    async def __aenter__(self) -> Undo:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)
