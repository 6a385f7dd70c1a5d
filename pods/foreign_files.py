"""Runs what touches files that pods name, such as volumes, apart from everything else.

A file system whose server does not answer (NFS, FUSE) holds a thread in the kernel, where nothing can end it. In the
event loop's own pool a few such threads would hold up every pod of the node; and an interpreter that ends waits for all
threads of a pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from pods.errors import ResourceExhausted, Unavailable

SECONDS: Final = 30.0  # kubelet gives a call two minutes: it gets our reason, and not its own deadline
_MOST: Final = 256  # threads that may be held at a time
_IDLE: Final = 2  # threads that are kept for the next work
_P = ParamSpec("_P")
_T = TypeVar("_T")

_held = 0


class _Thread:
    """Runs one work after another, and is idle in between. Most starts of containers need none that is new."""

    def __init__(self) -> None:
        self._works: queue.SimpleQueue[_Work] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="foreign files", daemon=True).start()

    def run(self, work: _Work) -> None:
        self._works.put(work)

    def _serve(self) -> None:
        kept = True
        while kept:
            answer = self._works.get()()
            kept = len(_idle) < _IDLE
            if kept:
                _idle.append(self)  # before the answer, so that who is answered finds it
            answer()
            del answer  # and what it refers to


_Work = Callable[[], Callable[[], None]]  # raises nothing; the result answers
_idle: list[_Thread] = []


async def touch(what: str, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run `work` in a thread that does nothing else and return its result. `what` completes the errors.

    Raises what `work` raises, Unavailable if that does not return in time, and ResourceExhausted while too many do not.
    """
    global _held
    if _held >= _MOST:
        raise ResourceExhausted(
            f"{what}: {_held} earlier requests still wait for file systems whose servers do not answer: repair those"
        )
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[_T] = loop.create_future()
    context = contextvars.copy_context()

    def deliver(result: _T | None, error: BaseException | None) -> None:
        global _held
        _held -= 1
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type]

    def run() -> Callable[[], None]:
        result, failure = None, None
        try:
            result = context.run(work, *args, **kwargs)
        except BaseException as error:
            failure = error

        def say() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(deliver, result, failure)

        return say

    thread = _idle.pop() if _idle else _Thread()
    thread.run(run)
    _held += 1
    try:
        return await asyncio.wait_for(answer, SECONDS)
    except TimeoutError:
        if not answer.cancelled():
            raise  # the work's own
        raise Unavailable(
            f"{what}: no answer within {SECONDS:g} s: does the server of a network or FUSE file system run?"
        ) from None
