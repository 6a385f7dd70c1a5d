"""The process that serves sessions: its main program. crispd starts it (`cri.streaming.process`); it outlives crispd.

It serves clients' connections that crispd has accepted: so the address is free as soon as crispd is dead, and a new
crispd has clients of its own at once, in a process of its own, whatever the versions of both are.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import stat
from typing import Final

from cri import logfmt
from cri.streaming.certificates import context_of
from cri.streaming.channel import Channel, Connection, Expected, Message, News, Settings
from cri.streaming.connection import STALLED_SECONDS, Timeouts
from cri.streaming.runtime import Shims
from cri.streaming.sessions import Sessions
from linux import syscalls
from linux.sealed import seal
from runtime.cgroups import SHIM_CGROUP, Cgroup, Hierarchies
from runtime.client import close_all

_LEAVING_SECONDS: Final = 0.05  # for connections without a session to go, when crispd has
_STOP_SECONDS: Final = 5.0  # for clients to take the reason of the end

_log = logging.getLogger("crisp.streaming")


def main(control: int, title: str) -> None:
    """Serve until crispd has closed the socket `control` and the last session has ended."""
    os.setsid()  # a terminal's Ctrl-C is for crispd
    syscalls.set_name("crisp-streams")
    syscalls.set_process_title(title)
    logfmt.start(logging.INFO)
    seal()
    try:
        asyncio.run(_serve(socket.socket(fileno=control)))
    finally:
        Cgroup.at(Hierarchies.usable(), SHIM_CGROUP).leave_self()


async def _serve(control: socket.socket) -> None:
    service = _Service(control)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, service.stop)
    await service.over.wait()


class _Service:
    """Carries out what crispd says, and tells it the news."""

    def __init__(self, control: socket.socket) -> None:
        self.over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._timeouts = Timeouts()
        self._sessions = Sessions(Shims(), self._timeouts, self._changed)
        self._channel = Channel(control, self._hear, self._left)
        self._tls: ssl.SSLContext | None = None
        self._arrivals: set[asyncio.Task[None]] = set()
        self._telling = False
        self._alone = False  # crispd is gone, or going

    def stop(self) -> None:
        """End all sessions, and then the process."""
        self._sessions.guests.stop("the streams of this node are being stopped")
        self._loop.call_later(_STOP_SECONDS, self.over.set)
        self._left()

    def _hear(self, message: Message, fds: list[int]) -> None:
        if isinstance(message, Connection):
            task = self._loop.create_task(self._arrive(socket.socket(fileno=fds[0])))
            self._arrivals.add(task)
            task.add_done_callback(self._arrivals.discard)
            return
        if isinstance(message, Expected):
            request = message.command or message.ports
            if request is not None:
                self._sessions.expect(message.token, request)
        elif isinstance(message, Settings):
            logfmt.set_level(message.log_level)
            if fds:
                self._tls = context_of(fds)
        close_all(fds)

    async def _arrive(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        tls = self._tls
        try:
            await self._loop.connect_accepted_socket(
                self._sessions.connection,
                connection,
                ssl=tls,
                ssl_handshake_timeout=self._timeouts.creation if tls else None,
                ssl_shutdown_timeout=STALLED_SECONDS if tls else None,
            )
        except OSError as error:  # ssl.SSLError is one
            connection.close()
            _log.debug("could not take a connection", extra={"error": error})

    def _changed(self) -> None:
        """Look, when all that happens now has happened, what is to be told and whether this was the last session."""
        if not self._telling:
            self._telling = True
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        self._telling = False
        if self._alone and self._sessions.idle:
            self.over.set()
        if self._channel.open:
            self._channel.send(self._news())

    def _news(self, *, stays: bool = False) -> News:
        guests = self._sessions.guests
        redeemed, self._sessions.redeemed = tuple(self._sessions.redeemed), []
        return News(
            tuple((*label, number) for label, number in guests.open().items()),
            tuple((*label, number) for label, number in guests.opened.items()),
            tuple((int(status), number) for status, number in guests.refused.items()),
            redeemed,
            stays,
        )

    def _left(self) -> None:
        """Go on alone: crispd has closed its end. Who has no session yet gets none."""
        self._alone = True
        for task in self._arrivals:
            task.cancel()
        self._sessions.guests.send_away_strangers()
        self._changed()
        self._loop.call_later(_LEAVING_SECONDS, self._stay)

    def _stay(self) -> None:
        """Tell crispd, which waits, that there are sessions yet."""
        if self.over.is_set() or not self._channel.open:
            return
        self._channel.send(self._news(stays=True))
        self._channel.close()
        if stat.S_ISFIFO(os.fstat(2).st_mode):  # crispd's: who reads it waits for its end
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, 2)
            os.close(null)
