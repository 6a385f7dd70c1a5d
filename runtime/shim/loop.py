"""Runs the event loop of a shim and of the zygote: descriptors, timers, and children to reap."""

from __future__ import annotations

import heapq
import math
import os
import select
import sys
import time
from collections.abc import Callable
from typing import Final

from linux.exit_status import exit_status
from runtime.light import contextlib, signal
from runtime.wire.calls import UNSEEN

READ: Final = 1  # what is watched of a descriptor, and what it is ready for
WRITE: Final = 2
_STATUS_PATIENCE: Final = 5.0  # seconds; the delay doubles up to it

class EventLoop:
    """A single-threaded loop. An exception in a callback is logged to the shim's log and stops nothing else."""

    def __init__(self, stray: Callable[[int, int], None] = lambda _pid, _status: None) -> None:
        """`stray` is called with pid and exit status of a child that nobody has asked about."""
        self._stray = stray
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._children: dict[int, Callable[[int], None]] = {}
        self._told: dict[int, int] = {}  # exit statuses that another process has reaped
        self._commands = 0  # running commands of external runtimes
        self._strays: dict[int, int] = {}  # exit statuses of unknown children, kept while a command runs
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_count = 0
        self._idle_timers = 0
        self._stopped = False
        self.turns = 0  # events of descriptors so far
        self.last = time.monotonic()  # when the last of them was
        self._of_children = -1  # the descriptor that tells of children
        self._watch_children()

    def run(self) -> None:
        """Run callbacks until `stop`."""
        while not self._stopped:
            timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            happened = self._wait(timeout)
            if happened:
                self.turns += len(happened)
                self.last = time.monotonic()
            for fd, events, ready in happened:
                if self._watched.get(fd) == ready and not _survived(ready, events):
                    self.unwatch(fd)  # it would fail again at once
            while self._timers and self._timers[0][0] <= time.monotonic():
                _survived(heapq.heappop(self._timers)[2])

    def stop(self) -> None:
        """Make `run` return after the present callback."""
        self._stopped = True

    @property
    def busy(self) -> bool:
        """Whether there are commands, or timers that the shim must wait for before it exits."""
        return len(self._timers) > self._idle_timers or self._commands > 0

    @property
    def has_timers(self) -> bool:
        return bool(self._timers)

    def watched(self, but: int) -> list[int]:
        """Return the watched descriptors, without `but` and what is the loop's own."""
        return [fd for fd in self._watched if fd not in (but, self._of_children)]

    def _wait(self, timeout: float | None) -> list[tuple[int, int, Callable[[int], None]]]:
        """Return the ready descriptors and who watches them: an event may close the next one, or have it reused."""
        # In whole milliseconds, rounded up: else the loop would turn until a timer is due.
        seconds = None if timeout is None else math.ceil(timeout * 1e3) / 1e3
        ready = self._epoll.poll(seconds, max(len(self._watched), 1))
        return [
            (fd, READ * bool(found & ~select.EPOLLOUT) | WRITE * bool(found & ~select.EPOLLIN), self._watched[fd])
            for fd, found in ready
            if fd in self._watched
        ]

    def watch(self, fd: int, events: int, ready: Callable[[int], None]) -> None:
        """Call `ready(events)` when the descriptor is ready. Replaces an earlier watch. Raises OSError."""
        wanted = select.EPOLLIN * bool(events & READ) | select.EPOLLOUT * bool(events & WRITE)
        if fd not in self._watched:
            self._epoll.register(fd, wanted)
        else:
            try:
                self._epoll.modify(fd, wanted)
            except OSError:
                self.unwatch(fd)
                raise
        self._watched[fd] = ready

    def unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            with contextlib.suppress(OSError):  # it was closed
                self._epoll.unregister(fd)

    def later(self, delay: float, callback: Callable[[], None]) -> None:
        """Call back after `delay` seconds."""
        self._timer_count += 1
        heapq.heappush(self._timers, (time.monotonic() + delay, self._timer_count, callback))

    def idly(self, delay: float, callback: Callable[[], None]) -> None:
        """Call back after `delay` seconds, but do not keep the shim from exiting."""

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

        self._of_children = reader
        self.watch(reader, READ, reap)

    def _reap(self) -> None:
        """Reap every dead child: our own, and orphans of containers without a PID namespace of their own."""
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
                continue
            if self._commands:
                self._strays[pid] = os.waitstatus_to_exitcode(status)
            _survived(self._stray, pid, os.waitstatus_to_exitcode(status))

    def on_exit(self, pid: int, callback: Callable[[int], None]) -> None:
        """Call back with the exit code, or minus the signal, when the child is reaped."""
        if (status := self._strays.pop(pid, None)) is not None:
            self.later(0, lambda: callback(status))
        else:
            self._children[pid] = callback

    def follow(self, pid: int, pidfd: int, callback: Callable[[int], None]) -> None:
        """Like `on_exit`, for a process that was the child of a shim before us, and is another's now."""
        self._children[pid] = callback
        own = os.dup(pidfd)

        def ended(_events: int) -> None:
            self.unwatch(own)
            self._find_status(pid, own)

        self.watch(own, READ, ended)

    def told(self, pid: int, status: int) -> None:
        """Take the exit status of a process that is followed, from who has reaped it."""
        if pid in self._children:
            self._told[pid] = status

    def expect(self, pid: int, status: int) -> None:
        """Take the exit status of a process that is about to be followed."""
        self._told[pid] = status

    def _find_status(self, pid: int, pidfd: int, delay: float = 0.001) -> None:
        status = self._told.pop(pid, None)
        if status is None:
            status = exit_status(pidfd)
        if status is None and delay < _STATUS_PATIENCE:  # it was not reaped yet
            self.idly(delay, lambda: self._find_status(pid, pidfd, 2 * delay))
            return
        os.close(pidfd)
        callback = self._children.pop(pid, None)
        if callback is not None:
            callback(UNSEEN if status is None else status)

    def is_child(self, pid: int) -> bool:
        """Return whether the process is a child, or followed, and was not reaped: its pid cannot be reused."""
        return pid in self._children

    def command_started(self, pid: int, done: Callable[[int], None]) -> None:
        """Call `done` with a command's exit status.

        Until then keep statuses of children that nobody has asked about.
        """
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
    """Run a callback. Return False if it raised: the exception is logged and ends neither the loop nor the pod."""
    try:
        callback(*arguments)
    except Exception:
        sys.excepthook(*sys.exc_info())
        return False
    return True
