"""Follows an exec'd process in the shim: from the clone to the execve and to its exit."""

from __future__ import annotations

import os

from runtime.light import contextlib, socket
from runtime.shim.loop import READ
from runtime.shim.reply import Reply
from runtime.shim.stdio import Loop
from runtime.wire import reports
from runtime.wire.calls import Descriptors, ExecEnded


class Exec:
    """An exec. `reply` is called once, at its exit: with the exit code, or the error if the program could not run.

    `pid` and `pidfd` are of the process that joins the container, and then of the one that it bears to be the program.
    """

    def __init__(
        self,
        pid: int,
        pidfd: int,
        channel: socket.socket,
        loop: Loop,
        reply: Reply,
        conversation: reports.Conversation,
    ) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.killed = False
        self._channel = channel
        self._loop = loop
        self._reply = reply
        self._running_reply: Reply | None = None
        self._conversation = conversation
        self._master = -1
        self._asked = False
        self._ended = False

    @property
    def unclaimed(self) -> bool:
        """Whether it exited before the client asked for its terminal, which still holds its output."""
        return self._ended and not self._asked and self._master >= 0

    @property
    def awaits_birth(self) -> bool:
        """Whether the process is to tell of another one yet."""
        return self._conversation.awaits_birth

    def take_what_is_there(self) -> None:
        """Handle the reports that have arrived, without waiting for more."""
        with contextlib.suppress(BlockingIOError):
            while self._receive():
                pass

    def wait_running(self, reply: Reply) -> None:
        """Reply when the program runs, with its terminal's master if it has one; or when it never will."""
        self._asked = True
        self._running_reply = reply
        if self._ended:
            self._tell_running()
            self.close()
        else:
            self._loop.watch(self._channel.fileno(), READ, self._ready)

    def _ready(self, _events: int) -> None:
        try:
            goes_on = self._receive()
        except BlockingIOError:  # already handled
            return
        if not goes_on:
            self._loop.unwatch(self._channel.fileno())
            if self._conversation.failure is None:
                self._tell_running()

    def _receive(self) -> bool:
        """Handle one report. Return False at end of file, i.e. at the execve."""
        match reports.receive(self._channel, self._conversation, wait=False):
            case reports.Ended():
                return False
            case reports.Born(pid, pidfd):
                os.close(self.pidfd)
                self.pid, self.pidfd = pid, pidfd
            case reports.Console(master):
                self._master = master
        return True

    def _tell_running(self) -> None:
        reply, self._running_reply = self._running_reply, None
        if reply is not None:
            runs_in_terminal = self._conversation.failure is None and self._master >= 0
            reply(Descriptors((self._master,) if runs_in_terminal else ()))

    def exited(self, status: int) -> None:
        """Handle the exit: `status` is the exit code, or minus the signal. Closes the exec unless it is `unclaimed`."""
        self._ended = True
        self._loop.unwatch(self._channel.fileno())
        self.take_what_is_there()
        failure = self._conversation.failure
        if failure is None:
            self._tell_running()
            self._reply(ExecEnded(128 - status if status < 0 else status))
        else:
            self._reply(failure)
            self._tell_running()
        if not self.unclaimed:
            self.close()

    def close(self) -> None:
        self._channel.close()
        os.close(self.pidfd)
        if self._master >= 0:
            os.close(self._master)
