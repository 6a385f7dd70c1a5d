"""A client's connection: its HTTP request, the upgrade, and then the bytes of a link."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import select
import socket
import sys
import termios
from collections import Counter as Tally
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from cri.streaming.errors import ProtocolViolation, Refused
from cri.streaming.handshake import Handshake

if TYPE_CHECKING:
    from cri.streaming.handshake import Upgrade
    from cri.streaming.link import Link
    from cri.streaming.page import Page

RECEIVE_BYTES: Final = 256 << 10
_HIGH, _LOW = 64 << 10, 16 << 10  # bytes waiting for the client: sources pause above, and resume below
_ABUSE = 4 << 20  # bytes waiting although sources paused: a peer that asks but does not read answers
_HELD = 512 << 10  # bytes waiting for descriptors: above it the client is not read
_MAX_STRANGERS = 256  # connections that have not shown a token
_LINGER_SECONDS = 1.0
STALLED_SECONDS = 30.0  # for a client to read the last bytes
_FIRST_SIGN_SECONDS, _SIGN_SECONDS = 1.0, 20.0  # clients close a silent WebSocket after a minute

_log = logging.getLogger("crisp.streaming")

Accept = Callable[["ClientConnection", "Upgrade"], "tuple[Link, str]"]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Timeouts in seconds, the same as those of kubelet's streaming server."""

    idle: float = 4 * 3600.0
    creation: float = 30.0  # for the request, and for opening its streams


class Guests:
    """The open connections. A TLS connection counts after its handshake. `changed` is called when anything changes."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.changed = changed
        self._wires: dict[ClientConnection, None] = {}  # oldest first
        self.opened: Tally[tuple[str, str]] = Tally()  # kind and transport of all connections so far
        self.refused: Tally[int] = Tally()  # by HTTP status

    def enter(self, wire: ClientConnection) -> None:
        """Add a connection. Beyond the limit of connections without a token the oldest is closed, to let others in."""
        strangers = [other for other in self._wires if not other.upgraded]
        if len(strangers) >= _MAX_STRANGERS:
            _log.info("streaming connection ended", extra={"error": "too many connections without a token"})
            strangers[0].abort()
            self.leave(strangers[0])  # the next may come before asyncio reports this one's end
        self._wires[wire] = None

    def leave(self, wire: ClientConnection) -> None:
        self._wires.pop(wire, None)
        self.changed()

    def upgrade(self, label: tuple[str, str]) -> None:
        """Count a connection that has got its streams."""
        self.opened[label] += 1
        self.changed()

    def refuse(self, status: int) -> None:
        """Count a request that was refused."""
        self.refused[status] += 1
        self.changed()

    def open(self) -> Tally[tuple[str, str]]:
        """Return the numbers of open connections with a token, by kind and transport."""
        return Tally(wire.label for wire in self._wires if wire.upgraded)

    def send_away_strangers(self) -> None:
        """Close all connections without a token."""
        for wire in tuple(self._wires):
            if not wire.upgraded:
                wire.abort()

    def stop(self, reason: str) -> None:
        """End all sessions, and tell the clients why."""
        for wire in tuple(self._wires):
            wire.stop(reason)

    def __bool__(self) -> bool:
        return bool(self._wires)


class ClientConnection(asyncio.BufferedProtocol):
    """One connection. `accept` turns its request into a link and the chosen protocol, or raises Refused.

    Connections share `buffer`, which data is received into, and `page`, which data to send is read into: each is done
    with them before the next is served.
    """

    def __init__(
        self, accept: Accept, buffer: memoryview, page: Page, timeouts: Timeouts, guests: Guests
    ) -> None:
        self.page = page
        self._accept = accept
        self._buffer = buffer
        self._timeouts = timeouts
        self._guests = guests
        self._loop = asyncio.get_running_loop()
        self._handshake: Handshake | None = Handshake()
        self._link: Link | None = None
        self._transport: asyncio.Transport
        self._hangup: Hangup | None = None
        self._held = 0
        self._active = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._signs: asyncio.TimerHandle | None = None
        self._ending = False
        self.full = False  # the client accepts no more for now
        self.label = ("", "")  # its kind and transport, once it has shown a token
        self.fields: dict[str, object] = {}  # for log lines: whose streams they are

    @property
    def upgraded(self) -> bool:
        return self._link is not None

    # -- asyncio's side -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._guests.enter(self)
        self._transport.set_write_buffer_limits(_HIGH, _LOW)
        connection = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            # Only keep-alives detect a client whose machine died while we had nothing to send.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        self._set_timer(self._timeouts.creation, self._check_handshake)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = self._buffer[:nbytes]
        self._active = self._loop.time()
        if self._ending:
            return
        try:
            if self._link is not None:
                self._link.receive(data)
            elif self._handshake is not None:
                self._request(self._handshake, data)
        except ProtocolViolation as error:
            self._tell_end(error)
            self.end()
            self._lost()

    def eof_received(self) -> bool:
        """Handle a hangup. None of the protocols uses a half-closed TCP connection."""
        self._ending = True
        self._lost()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._ending = True
        self._watch(None)
        if self._timer is not None:
            self._timer.cancel()
        self._lost()
        self._guests.leave(self)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        if self._link is not None and not self._ending:
            self._link.listener.writable()

    # -- the request --------------------------------------------------------------------------------------------------

    def _request(self, handshake: Handshake, data: memoryview) -> None:
        try:
            upgrade = handshake.receive(data)
            if upgrade is None:
                return
            self._link, protocol = self._accept(self, upgrade)
        except Refused as refused:
            self._guests.refuse(refused.status)
            fields = self.fields | {"error": refused, "status": refused.status}
            _log.info("streaming request refused", extra=fields)
            self.write([handshake.refuse(refused)])
            self.end()
            return
        self._guests.upgrade(self.label)
        self._handshake = None
        self.write([handshake.switch(protocol)])
        self._link.begin()
        self._check_idle()
        if rest := handshake.rest():
            self._link.receive(memoryview(rest))

    def _tell_end(self, why: object) -> None:
        _log.info("streaming connection ended", extra=self.fields | {"error": why})

    def _check_handshake(self) -> None:
        if self._link is None:
            self._transport.abort()

    # -- the link's side ----------------------------------------------------------------------------------------------

    def write(self, data: Iterable[bytes | memoryview]) -> None:
        """Send bytes. What does not fit is buffered: check `full` before sending much."""
        self._send(b"".join(data))

    def write_page(self, frame: memoryview) -> None:
        """Send a part of the page."""
        self._send(frame)
        if sys.version_info >= (3, 12) and self._transport.get_write_buffer_size():
            self.page.renew()  # asyncio keeps a view of the rest, not a copy

    def _send(self, data: bytes | memoryview) -> None:
        if self._ending or self._transport.is_closing():
            return
        self._active = self._loop.time()
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > _ABUSE:
            self._tell_end("the client does not read the answers to its frames")
            self._transport.abort()

    def hold(self, length: int) -> None:
        """Count bytes that wait for a descriptor. While there are too many the client is not read."""
        self._held += length
        if self._held > _HELD and self._hangup is None and not self._ending:
            self._transport.pause_reading()
            self._watch(Hangup(self._loop, self._transport, self._transport.abort))

    def release(self, length: int) -> None:
        """Uncount bytes that no longer wait."""
        self._held -= length
        if self._hangup is not None and self._held <= _HELD:
            self._watch(None)
            self._transport.resume_reading()

    def end(self) -> None:
        """Send the buffered bytes and close our direction; then wait for the client to close.

        Closing while the client's bytes are unread would reset the connection: the client could lose the last bytes.
        """
        if self._ending:
            return
        self._ending = True
        if self._hangup is not None:
            self._watch(None)
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
            self._linger(self._unsent(), 0.0)
        else:
            self._transport.close()  # TLS has its own closing handshake

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def stop(self, reason: str) -> None:
        """End the session, and tell the client why."""
        if self._link is not None:
            self._link.listener.stop(reason)

    def _lost(self) -> None:
        link = self._link
        if link is not None:
            self._link = None
            link.listener.lost()

    def _linger(self, before: int, waited: float) -> None:
        """Close if the client has read everything and does not close, or reads nothing for a while."""
        unsent = self._unsent()
        waited = waited + _LINGER_SECONDS if unsent == before else 0.0
        if waited > (STALLED_SECONDS if unsent else _LINGER_SECONDS):
            self._transport.abort()
            return
        self._set_timer(_LINGER_SECONDS, self._linger, unsent, waited)

    def _unsent(self) -> int:
        """Return the bytes that the client has not received: in asyncio's buffer and the kernel's."""
        waiting = bytearray(4)
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, waiting)
        return self._transport.get_write_buffer_size() + int.from_bytes(waiting, sys.byteorder)

    def _watch(self, hangup: Hangup | None) -> None:
        """Begin or end a period in which the client is not read."""
        if self._hangup is not None:
            self._hangup.close()
        if self._signs is not None:
            self._signs.cancel()
        self._hangup = hangup
        self._signs = self._sign_in(_FIRST_SIGN_SECONDS) if hangup else None

    def _sign_in(self, seconds: float) -> asyncio.TimerHandle:
        """Send a sign of life after some seconds, then less and less often.

        It also detects a client that has left: its hangup is behind unread bytes, but its kernel answers with a reset.
        """
        return self._loop.call_later(seconds, self._sign_of_life, seconds)

    def _sign_of_life(self, seconds: float) -> None:
        if self._link is not None:
            self._link.keep_alive()
            self._signs = self._sign_in(min(2 * seconds, _SIGN_SECONDS))

    def _set_timer(self, seconds: float, call: Callable[..., None], *arguments: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, call, *arguments)

    def _check_idle(self) -> None:
        left = self._active + self._timeouts.idle - self._loop.time()
        if left > 0:
            self._set_timer(left, self._check_idle)
        else:
            self._tell_end(f"idle for {self._timeouts.idle:g} s")
            self._transport.abort()


class Hangup:
    """Detects the hangup of a client that is not being read: the event loop only watches what it reads."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, gone: Callable[[], None]) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._epoll.register(transport.get_extra_info("socket").fileno(), select.EPOLLRDHUP | select.EPOLLHUP)
        loop.add_reader(self._epoll.fileno(), gone)

    def close(self) -> None:
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
