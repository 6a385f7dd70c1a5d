"""Runs the recorder's writes on one thread, which no stop of crispd waits for without bound: a disk may hang."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Final

_log: Final = logging.getLogger("crisp.recorder")
_CLOSE_SECONDS: Final = 3.0


class Writer:
    """A queue and the thread that works it off, in order. The thread begins with the first write.

    A ThreadPoolExecutor would not do: the interpreter joins its threads when it ends.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._submitted = self._done = 0  # each is changed by one thread only

    @property
    def busy(self) -> bool:
        """Tell whether a write runs or waits."""
        return self._submitted > self._done

    def submit(self, write: Callable[[], None]) -> None:
        """Run `write` on the thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
            self._thread.start()
        self._submitted += 1
        self._queue.put(write)

    def close(self) -> bool:
        """Wait a few seconds for all writes, and end the thread. False: the disk still hangs, and they may be lost."""
        thread, self._thread = self._thread, None
        if thread is None:
            return True
        self._queue.put(None)
        thread.join(_CLOSE_SECONDS)
        return not thread.is_alive()

    def _work(self) -> None:
        while (write := self._queue.get()) is not None:
            try:
                write()
            except Exception:  # the next write may succeed
                _log.exception("a write of the recorder failed")
            self._done += 1
