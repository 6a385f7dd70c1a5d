"""The streaming server: listens, issues URLs, and passes clients on to the process that serves their sessions."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections import Counter as Tally
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cri.errors import StartupError
from cri.streaming.certificates import Certificates
from cri.streaming.channel import News, Settings
from cri.streaming.earlier import EarlierProcesses
from cri.streaming.errors import NoProcess
from cri.streaming.process import StreamsProcess
from cri.streaming.requests import Request, kind
from cri.streaming.tokens import Tokens

if TYPE_CHECKING:
    from cri.streaming.address import StreamAddress
    from cri.streaming.process import Place

_BACKLOG: Final = 128
_AT_ONCE: Final = 64  # connections that are accepted before others have their turn
_PAUSE_SECONDS: Final = 1.0
_MOST_UNTAKEN: Final = 256  # connections in a row for a process that takes none
_IDLE_SECONDS: Final = 300.0  # until a process without sessions is let go

_log = logging.getLogger("crisp.streaming")


class StreamingServer:
    """Has the requests served that URLs were issued for. All methods run on the daemon's event loop.

    The process of the sessions is started for the first request, or connection. It goes on over an end of the daemon.
    """

    def __init__(self, address: StreamAddress, state: Path, place: Place, log_level: int = logging.INFO) -> None:
        """`state` is the daemon's directory, by which a later one knows the process.

        `place` moves the process, by its pid, to where it outlives the daemon.
        """
        self._address = address
        self._title = f"crisp-streams {state}"
        self._place = place
        self._log_level = log_level
        self._tokens = Tokens(time.monotonic)
        self._certificates = Certificates()
        self._listeners: list[socket.socket] = []
        self._process: StreamsProcess | None = None
        self._untaken = 0
        self._resting: asyncio.TimerHandle | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._past = Traffic()  # of processes that have ended
        self._earlier: EarlierProcesses | None = None
        self._base = ""

    async def start(self) -> None:
        """Listen. Raises StartupError."""
        address = self._address
        self._earlier = EarlierProcesses(self._title)
        if len(self._earlier):
            _log.info("sessions of an earlier crispd go on", extra={"processes": len(self._earlier)})
        self._certificates = Certificates.read(address)
        try:
            await self._listen(address.host.strip("[]"), address.port)
        except OSError as error:
            self._stop_listening()
            raise StartupError(f"listen on {address.host}:{address.port} for streaming: {error.strerror}") from error
        port = self._listeners[0].getsockname()[1]
        self._base = f"{'https' if self._certificates else 'http'}://{address.host}:{port}"

    def reload(self, log_level: int) -> None:
        """Log from this level on, and use the present certificate files for new connections.

        If those are wrong (StartupError) nothing changes.
        """
        self._certificates = Certificates.read(self._address)
        self._log_level = log_level
        if self._process is not None and self._process.alive:
            with self._certificates.files() as files:
                self._process.tell(Settings(self._log_level), files)

    async def close(self) -> None:
        """Stop listening. Sessions go on."""
        self._stop_listening()
        if self._resting is not None:
            self._resting.cancel()
        if self._process is not None:
            await self._process.leave()
            self._process = None
        if self._leaving:
            await asyncio.wait(self._leaving)
        if self._earlier is not None:
            self._earlier.close()

    def url(self, request: Request) -> str:
        """Return a URL for the request, valid once and for one minute. Raises TooManyPending, NoProcess."""
        token = self._tokens.issue(request)
        self._running().expect(token, request)
        return f"{self._base}/{kind(request)}/{token}"

    def traffic(self) -> Traffic:
        """Return the numbers of connections, without those of processes that earlier daemons have left."""
        return self._past if self._process is None else self._past + Traffic.of(self._process.news)

    def processes(self) -> int:
        """Return how many processes serve streams, those of earlier daemons included."""
        own = self._process is not None and self._process.alive
        return own + (len(self._earlier) if self._earlier is not None else 0)

    # -- listening ----------------------------------------------------------------------------------------------------

    async def _listen(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _kind, _protocol, _name, place in found:
            listener = socket.create_server(place[:2], family=family, backlog=_BACKLOG)
            self._listeners.append(listener)
            listener.setblocking(False)
            loop.add_reader(listener.fileno(), self._accept, listener)

    def _stop_listening(self) -> None:
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.remove_reader(listener.fileno())
            listener.close()
        self._listeners.clear()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    _log.error("could not accept a streaming connection", extra={"error": error})
                    self._pause(listener)
                    return
                continue  # accept(2): the client has left meanwhile
            with connection:
                self._pass_on(connection)

    def _pause(self, listener: socket.socket) -> None:
        """The listener stays readable: try again later."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener.fileno())

        def resume() -> None:
            if listener.fileno() >= 0:
                loop.add_reader(listener.fileno(), self._accept, listener)

        loop.call_later(_PAUSE_SECONDS, resume)

    def _pass_on(self, connection: socket.socket) -> None:
        try:
            process = self._running()
            self._untaken = self._untaken + 1 if process.clogged else 0
            if self._untaken < _MOST_UNTAKEN:
                process.connect(connection)
        except (NoProcess, OSError) as error:
            _log.error("could not pass on a streaming connection", extra={"error": error})

    # -- the process --------------------------------------------------------------------------------------------------

    def _running(self) -> StreamsProcess:
        """Return the process, which is started if there is none. Raises NoProcess."""
        self._rest_later()
        if self._process is not None and self._process.alive:
            return self._process
        if self._process is not None:
            _log.error("the process of streams has died; starting another one")
            self._past = self.traffic()
        try:
            with self._certificates.files() as files:
                settings = Settings(self._log_level)
                self._process = StreamsProcess(self._title, settings, files, self._place, self._heard)
        except OSError as error:
            self._process = None
            raise NoProcess(f"start the process of streams: {error.strerror}") from error
        return self._process

    def _heard(self, news: News) -> None:
        for token in news.redeemed:
            self._tokens.redeem(token)

    def _rest_later(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
        self._resting = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._rest)

    def _rest(self) -> None:
        """Let a process go that has no sessions, for the memory."""
        process = self._process
        if process is None:
            return
        if process.alive and (process.news.open or self._tokens):
            self._rest_later()
            return
        self._past = self.traffic()
        self._process = None
        task = asyncio.get_running_loop().create_task(process.leave())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)


class Traffic:
    """Numbers of connections: those that have their streams, and all that had, by kind and transport; and refused ones,
    by HTTP status.
    """

    def __init__(self) -> None:
        self.open: Tally[tuple[str, str]] = Tally()
        self.opened: Tally[tuple[str, str]] = Tally()
        self.refused: Tally[int] = Tally()

    @classmethod
    def of(cls, news: News) -> Traffic:
        traffic = cls()
        traffic.open.update({(name, transport): number for name, transport, number in news.open})
        traffic.opened.update({(name, transport): number for name, transport, number in news.opened})
        traffic.refused.update(dict(news.refused))
        return traffic

    def __add__(self, other: Traffic) -> Traffic:
        both = Traffic()
        both.open, both.opened = other.open, self.opened + other.opened
        both.refused = self.refused + other.refused
        return both
