"""The process that serves the sessions of exec, attach and port-forward, as crispd knows it: starts it, talks to it.

It outlives crispd as long as it has sessions. What runs in it is `cri.streaming.serve`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from cri.streaming.channel import Channel, Connection, Expected, Message, News, Settings
from cri.streaming.requests import Request
from linux.search_path import search_path
from runtime.client import close_all

_BOOT: Final = (
    "import sys; sys.path += sys.argv[3:]; from cri.streaming.serve import main; main(int(sys.argv[1]), sys.argv[2])"
)
_LIBRARIES: Final = ("h11", "websockets")
_END_SECONDS: Final = 5.0

_log = logging.getLogger("crisp.streaming")

Place = Callable[[int], Awaitable[None]]


class StreamsProcess:
    """One such process. It is being started on return of the constructor, and can be told anything at once."""

    def __init__(
        self, title: str, settings: Settings, certificates: list[int], place: Place, heard: Callable[[News], None]
    ) -> None:
        """`place` moves the process, by its pid, out of crispd's cgroup. `heard` is called with its news."""
        self._title = title
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._place = place
        self._heard = heard
        self._channel = Channel(ours, self._hear, self._lost)
        self._gone = asyncio.Event()  # or it stays, with sessions
        self._stays = False
        self._process: subprocess.Popen[bytes] | None = None
        self.news = News()
        self.tell(settings, certificates)
        self._starting = asyncio.get_running_loop().create_task(self._start(theirs))

    @property
    def alive(self) -> bool:
        """Whether it takes messages, as far as is known."""
        return self._channel.open

    @property
    def clogged(self) -> bool:
        """Whether it does not take what it is sent: it is being started, or somebody has stopped it."""
        return self._channel.clogged

    def tell(self, settings: Settings, certificates: list[int]) -> None:
        """Change how it serves."""
        self._channel.send(settings, certificates)

    def expect(self, token: str, request: Request) -> None:
        """Announce a client."""
        self._channel.send(Expected.of(token, request))

    def connect(self, connection: socket.socket) -> None:
        """Hand over a client's connection, which may be closed on return."""
        self._channel.send(Connection(), (connection.fileno(),))

    async def leave(self) -> None:
        """Let it end with its last session. Waits for the end if it has none."""
        await asyncio.wait({self._starting})
        self._channel.finish()
        try:
            async with asyncio.timeout(_END_SECONDS):
                await self._gone.wait()
        except TimeoutError:
            _log.warning("the process of streams does not answer")
        self._channel.close()
        if self._gone.is_set() and not self._stays and self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, _END_SECONDS)

    async def _start(self, theirs: socket.socket) -> None:
        try:
            with theirs:
                self._process = await asyncio.to_thread(_spawn, theirs, self._title)
            await self._place(self._process.pid)
        except OSError as error:
            _log.error("could not start the process of streams", extra={"error": error})
            self._lost()

    def _hear(self, message: Message, fds: list[int]) -> None:
        close_all(fds)
        if isinstance(message, News):
            self.news = message
            self._heard(message)
            if message.stays:
                self._stays = True
                self._gone.set()

    def _lost(self) -> None:
        self._channel.close()
        self.news = News(opened=self.news.opened, refused=self.news.refused)
        self._gone.set()
        if self._process is not None and not self._stays:
            threading.Thread(target=self._process.wait, name="streams", daemon=True).start()


def _spawn(control: socket.socket, title: str) -> subprocess.Popen[bytes]:
    fd = control.fileno()
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _BOOT, str(fd), title, *search_path(_LIBRARIES)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[fd],
        env={name: os.environ[name] for name in ("JOURNAL_STREAM",) if name in os.environ} | {"MALLOC_ARENA_MAX": "1"},
        cwd="/",
    )
