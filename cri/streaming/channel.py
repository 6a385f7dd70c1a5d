"""What crispd and the process of its streams say to each other, over a socket between them.

    crispd                                     the process
      Settings <certificate key authority>  ->  at the start, and when crispd's configuration is read again
      Expected                              ->  a token, and what its client may have
      Connection <socket>                   ->  of a client
                                            <-  News, when anything has changed

When crispd closes its end, or dies, the process ends with its last session, which needs nothing of crispd.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from cri.streaming.requests import Command, Ports, Request
from runtime.client import close_all
from runtime.wire.frames import Decoder, Outbox, ProtocolError, receive
from runtime.wire.values import Value, optional

if TYPE_CHECKING:
    from runtime.wire.values import Readers


class Message(Value):
    """What one end says to the other."""

    __slots__ = ()

    name: ClassVar[str]


@dataclass(frozen=True, slots=True)
class Settings(Message):
    """How sessions are served. With descriptors, files in memory of what `StreamAddress` names, over TLS."""

    name: ClassVar[str] = "settings"

    log_level: int


@dataclass(frozen=True, slots=True)
class Expected(Message):
    """A client may come with the token."""

    name: ClassVar[str] = "expected"
    READ: ClassVar[Readers] = {"command": optional(Command), "ports": optional(Ports)}

    token: str
    command: Command | None = None
    ports: Ports | None = None

    @classmethod
    def of(cls, token: str, request: Request) -> Expected:
        return cls(token, ports=request) if isinstance(request, Ports) else cls(token, command=request)


@dataclass(frozen=True, slots=True)
class Connection(Message):
    """A client has connected."""

    name: ClassVar[str] = "connection"


def _rows(items: Any) -> object:
    return tuple(tuple(item) for item in items)


@dataclass(frozen=True, slots=True)
class News(Message):
    """The numbers of connections that have their streams now, and had them, by kind and transport; of refused requests,
    by HTTP status; the tokens that clients have shown since the last message; and whether crispd need not wait for the
    end of the process.
    """

    name: ClassVar[str] = "news"
    READ: ClassVar[Readers] = {"open": _rows, "opened": _rows, "refused": _rows, "redeemed": tuple}

    open: tuple[tuple[str, str, int], ...] = ()
    opened: tuple[tuple[str, str, int], ...] = ()
    refused: tuple[tuple[int, int], ...] = ()
    redeemed: tuple[str, ...] = ()
    stays: bool = False


_KINDS: Final = {kind.name: kind for kind in (Settings, Expected, Connection, News)}


class Channel:
    """One end of the socket, on an event loop."""

    def __init__(
        self, sock: socket.socket, hear: Callable[[Message, list[int]], None], ended: Callable[[], None]
    ) -> None:
        """`hear` is called with each message, and its descriptors, which it owns; `ended` at the other end's end."""
        sock.setblocking(False)
        self._sock = sock
        self._hear = hear
        self._ended = ended
        self._decoder = Decoder()
        self._outbox = Outbox(sock)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def open(self) -> bool:
        return self._sock.fileno() >= 0

    @property
    def clogged(self) -> bool:
        """Whether the other end does not take what it is sent."""
        return bool(self._outbox)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message. The descriptors may be closed on return."""
        if self.open:
            self._outbox.put({"say": message.name, **message.to_json()}, fds)
            self._flush()

    def finish(self) -> None:
        """Say that no message will follow."""
        if self.open:
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if not self.open:
            return
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._outbox.close()
        self._decoder.close()
        self._sock.close()

    def _flush(self) -> None:
        try:
            self._outbox.flush()
        except OSError:
            return  # the reader will find the end, after what was said before it
        if self._outbox:
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def _writable(self) -> None:
        self._loop.remove_writer(self._sock.fileno())
        self._flush()

    def _readable(self) -> None:
        try:
            alive = receive(self._sock, self._decoder)
            for record, fds in self._decoder.messages():
                self._take(record, fds)
        except BlockingIOError:
            return
        except (OSError, ProtocolError):
            alive = False
        if not alive and self.open:
            self._loop.remove_reader(self._sock.fileno())
            self._ended()

    def _take(self, record: dict[str, Any], fds: list[int]) -> None:
        kind = _KINDS.get(record.get("say", ""))
        if kind is None:  # of a crisp that was installed meanwhile
            close_all(fds)
            return
        self._hear(kind.from_json(record), fds)
