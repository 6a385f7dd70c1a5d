"""A shim's event loop: descriptors, timers, and the children that it reaps."""

from __future__ import annotations

import contextlib
import heapq
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable


class EventLoop:
    """Single-threaded. What a callback runs into is told in the shim's log, and ends nothing else."""

    def __init__(self) -> None:
        self._selector = selectors.EpollSelector()
        self._children: dict[int, Callable[[int], None]] = {}
        self._commands = 0  # of external runtimes, that run
        self._strays: dict[int, int] = {}  # statuses of children nobody has asked about, while there is a command
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_count = 0
        self._idle_timers = 0
        self._stopped = False
        self._watch_children()

    def run(self) -> None:
        """Call back until `stop`."""
        while not self._stopped:
            timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            for key, events in self._selector.select(timeout):
                if self._is_current(key) and not _survived(key.data, events):
                    self.unwatch(key.fd)  # or it would fail again at once
            while self._timers and self._timers[0][0] <= time.monotonic():
                _survived(heapq.heappop(self._timers)[2])

    def stop(self) -> None:
        """Return from `run` once the callback that is under way has returned."""
        self._stopped = True

    @property
    def busy(self) -> bool:
        """Whether there are timers that somebody waits for, or commands."""
        return len(self._timers) > self._idle_timers or self._commands > 0

    def _is_current(self, key: selectors.SelectorKey) -> bool:
        """Whether the descriptor is still watched for the same: an earlier event may have closed it, or reused it."""
        try:
            return bool(self._selector.get_key(key.fd).data == key.data)
        except KeyError:
            return False

    def watch(self, fd: int, events: int, ready: Callable[[int], None]) -> None:
        """Call `ready(events)` when the descriptor is; replaces an earlier watch."""
        try:
            self._selector.modify(fd, events, ready)
        except KeyError:
            self._selector.register(fd, events, ready)

    def unwatch(self, fd: int) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(fd)

    def later(self, delay: float, callback: Callable[[], None]) -> None:
        """Call back in `delay` seconds."""
        self._timer_count += 1
        heapq.heappush(self._timers, (time.monotonic() + delay, self._timer_count, callback))

    def idly(self, delay: float, callback: Callable[[], None]) -> None:
        """The same for what nobody waits for when the shim leaves."""

        def run() -> None:
            self._idle_timers -= 1
            callback()

        self._idle_timers += 1
        self.later(delay, run)

    def _watch_children(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

        def reap(_events: int) -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(reader, 4096)
            self._reap()

        self.watch(reader, selectors.EVENT_READ, reap)

    def _reap(self) -> None:
        """Collect every dead child: ours, and orphans of pods that share no PID namespace of their own."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            callback = self._children.pop(pid, None)
            if callback is not None:
                _survived(callback, os.waitstatus_to_exitcode(status))
            elif self._commands:
                self._strays[pid] = os.waitstatus_to_exitcode(status)

    def on_exit(self, pid: int, callback: Callable[[int], None]) -> None:
        """Call back with the exit code, or minus the signal, once the child is reaped."""
        if (status := self._strays.pop(pid, None)) is not None:
            self.later(0, lambda: callback(status))
        else:
            self._children[pid] = callback

    def is_child(self, pid: int) -> bool:
        """Whether the process is a child that was not reaped, so that its number means no other."""
        return pid in self._children

    def command_started(self, pid: int, done: Callable[[int], None]) -> None:
        """Call `done` with how a command ends. Until then children may end that nobody has asked about yet."""
        self._commands += 1

        def ended(status: int) -> None:
            try:
                done(status)
            finally:
                self._commands -= 1
                if not self._commands:
                    self._strays.clear()

        self.on_exit(pid, ended)


def _survived(callback: Callable[..., None], *arguments: int) -> bool:
    """Call back. What goes wrong is told in the shim's log and ends neither the loop nor the pod: False then."""
    try:
        callback(*arguments)
    except Exception:
        sys.excepthook(*sys.exc_info())
        return False
    return True
