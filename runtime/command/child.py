"""Follows our child until it runs its program, and the process it may fork for that (`runtime.process.bear`)."""

from __future__ import annotations

import os

from runtime.light import contextlib, signal, socket
from runtime.wire.reports import (
    Born,
    Console,
    Conversation,
    Ended,
    HooksDue,
    SeccompListener,
    Warned,
    answer,
    receive,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


class Child:
    """The process that will run the program, as far as is known. The caller closes `pidfd`."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._parents: list[int] = []  # processes that forked the present one; they exit, and we reap them

    def replaced(self, pid: int, pidfd: int) -> None:
        """Note that the child has forked `pid`, which is our child too and runs the program. The old child exits."""
        before = self.pidfd
        self._parents.append(self.pid)
        self.pid, self.pidfd = pid, pidfd
        os.close(before)

    def reap_parents(self) -> None:
        while self._parents:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._parents.pop(), 0)

    def end(self) -> None:
        """Kill all processes with SIGKILL and reap them."""
        for pid in (*self._parents, self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # the pid cannot be reused before it is reaped
        self.reap_parents()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self.pidfd)


class Launch:
    """Handles the reports of a child until its program runs, or waits to be started.

    `hooks` runs the creation hooks and returns the state that hooks get; `listener` takes the seccomp filter's
    listener; `terminal` is called with the terminal's master.
    """

    def __init__(
        self,
        channel: socket.socket,
        child: Child,
        conversation: Conversation,
        *,
        warn: Callable[[str], None],
        hooks: Callable[[], Mapping[str, Any]] = dict,
        listener: Callable[[int], None] = os.close,
        terminal: Callable[[int], None] = lambda _master: None,
    ) -> None:
        self._channel = channel
        self._child = child
        self._conversation = conversation
        self._warn = warn
        self._hooks = hooks
        self._listener = listener
        self._terminal = terminal
        self._console = -1
        self._held = -1  # the seccomp listener, until we know which process it belongs to

    def until_ready(self) -> int:
        """Return the terminal's master, -1 without one. Raises the error that the child reports."""
        try:
            while self._take_one():
                pass
            if self._conversation.outcome is not None:
                raise self._conversation.outcome
            self._child.reap_parents()
        except BaseException:
            if self._console >= 0:
                os.close(self._console)
            raise
        finally:
            if self._held >= 0:
                os.close(self._held)
        return self._console

    def _take_one(self) -> bool:
        """Handle one report. False at the end, or when the child has reported a failure."""
        report = receive(self._channel, self._conversation)
        match report:
            case Warned(text):
                self._warn(text)
            case Console(master):
                self._console = master
                self._terminal(master)
            case HooksDue():
                answer(self._channel, self._hooks())
            case SeccompListener(listener):
                self._held = listener
            case Born(pid, pidfd):
                self._child.replaced(pid, pidfd)
        if self._held >= 0 and not self._conversation.awaits_birth:
            held, self._held = self._held, -1
            self._listener(held)
        return self._conversation.failure is None and not isinstance(report, Ended)
