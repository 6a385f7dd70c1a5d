"""Our own child on its way to its program, and the one that it may bear for that (`runtime.process.bear`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping

from runtime.light import signal, socket
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
    from typing import Any


class Child:
    """`pid` and `pidfd`, the caller's to close, are those of whoever is to be the program, as far as is known."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._parents: list[int] = []  # they end, and are ours to reap

    def replaced(self, pid: int, pidfd: int) -> None:
        """It has borne that process, which is a child of ours too, and ends."""
        before = self.pidfd
        self._parents.append(self.pid)
        self.pid, self.pidfd = pid, pidfd
        os.close(before)

    def reap_parents(self) -> None:
        while self._parents:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._parents.pop(), 0)

    def end(self) -> None:
        """SIGKILL all there is, and reap it."""
        for pid in (*self._parents, self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # nobody else has its number before it is reaped
        self.reap_parents()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self.pidfd)


class Launch:
    """A child becomes its program: the caller waits for each report until the program runs, or waits at its gate.

    `hooks` runs those of the creation and returns the state that hooks get; `listener` takes the listener of the
    filter; `terminal` is told the terminal's master when it is there.
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
        self._held = -1  # the filter's listener, until it is known whose it is

    def until_ready(self) -> int:
        """Returns the terminal's master, -1 without one. Raises what the child failed with."""
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
        """False at the end, or when the child has said that it failed."""
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
