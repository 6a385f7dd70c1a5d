"""Serves one connection between crispd and a shim."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from runtime.light import socket
from runtime.logs.writer import complain
from runtime.shim.loop import READ, WRITE
from runtime.shim.reply import Reply
from runtime.wire.frames import Decoder, Message, Outbox, ProtocolError, receive


class Server(Protocol):
    """Handles the calls of a connection."""

    def watch(self, fd: int, events: int, ready: Callable[[int], None]) -> None: ...

    def handle(self, message: Message, fds: Sequence[int], connection: Connection) -> None: ...

    def forget(self, connection: Connection, fd: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Request:
    """A call's number, its descriptors, which are closed when the handler returns, its reply, and its connection."""

    number: int
    fds: Sequence[int]
    reply: Reply
    connection: Connection


class Connection:
    """One crispd that is connected to the shim."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self._sock = sock
        self._decoder = Decoder()
        self._outbox = Outbox(sock)
        sock.setblocking(False)
        server.watch(sock.fileno(), READ, self._ready)

    @property
    def fd(self) -> int:
        return self._sock.fileno()

    @property
    def at_rest(self) -> bool:
        """Whether everything is sent, and everything that came is handled or is being handled."""
        return not self._outbox and not self._decoder

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        if self._sock.fileno() < 0:
            return
        self._outbox.put(message, fds)
        self._flush()

    def _flush(self) -> None:
        try:
            self._outbox.flush()
        except OSError:
            self.close()
            return
        events = READ | (WRITE if self._outbox else 0)
        self._server.watch(self._sock.fileno(), events, self._ready)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & READ and self._sock.fileno() >= 0:
            try:
                alive = receive(self._sock, self._decoder)
                for message, fds in self._decoder.messages():
                    self._server.handle(message, fds, self)
            except BlockingIOError:
                return
            except (OSError, ProtocolError) as error:
                complain(f"closing a connection of crispd: {error}")
                alive = False
            if not alive:
                self.close()

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._server.forget(self, self._sock.fileno())
            self._outbox.close()
            self._decoder.close()
            self._sock.close()
