"""Named clean-ups: each step that makes something registers how to remove it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
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
        self._registered: list[tuple[str, Callable[[], Awaitable[object] | object]]] = []
        self._at_end: list[Callable[[], object]] = []

    def register(
        self, name: str, undoing: Callable[_P, Awaitable[object] | object], *args: _P.args, **kwargs: _P.kwargs
    ) -> None:
        """Add a clean-up. `name` completes "undo: ..." in the log."""

        self._registered.append((name, partial(undoing, *args, **kwargs)))

    async def _run(self, name: str, undoing: Callable[[], Awaitable[object] | object]) -> None:
        _log.info("undo: %s", name, extra=self._fields)
        self._told(f"undo: {name}")
        try:
            done = undoing()
            if inspect.isawaitable(done):
                await done
        except BaseException as error:
            self.failed = True
            if not isinstance(error, Exception):
                raise
            trace = None if isinstance(error, _EXPECTED) else error
            _log.error("undo failed: %s", name, extra={**self._fields, "error": error}, exc_info=trace)

    def at_end(self, work: Callable[_P, object], *args: _P.args, **kwargs: _P.kwargs) -> None:
        """Call `work` when the block ends, after the clean-ups if they run."""
        self._at_end.append(partial(work, *args, **kwargs))

    def discard(self) -> None:
        """Keep what was made: run no clean-up."""
        self._registered.clear()

    async def __aenter__(self) -> Undo:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ended: BaseException | None = None
        while self._registered:
            try:
                await self._run(*self._registered.pop())
            except BaseException as found:  # a cancellation: the other clean-ups run nevertheless
                ended = found
        for work in self._at_end:
            work()
        if ended is not None:
            raise ended
