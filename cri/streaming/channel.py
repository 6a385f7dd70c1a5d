"""What crispd and the process of its streams say to each other, over a socket between them.

    crispd                                     the process
      Settings <certificate key authority>  ->  at the start, and when crispd's configuration is read again
      Expected                              ->  a token, and what its client may have
      Connection <socket>                   ->  of a client
                                            <-  News, when anything has changed

When crispd closes its end, or dies, the process ends with its last session, which needs nothing of crispd.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from cri.streaming.requests import Command, Ports, Request
from runtime.client import close_all
from runtime.link import Link
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
        self._hear = hear
        # What cannot be sent shows by the end, which comes after what was said before it.
        self._link = Link(sock, self._take, ended)

    @property
    def open(self) -> bool:
        return self._link.open

    @property
    def clogged(self) -> bool:
        """Whether the other end does not take what it is sent."""
        return self._link.clogged

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message. The descriptors may be closed on return."""
        if self.open:
            self._link.send({"say": message.name, **message.to_json()}, fds)

    def finish(self) -> None:
        """Say that no message will follow."""
        if self.open:
            self._link.finish()

    def close(self) -> None:
        self._link.close()

    def _take(self, record: dict[str, Any], fds: list[int]) -> None:
        kind = _KINDS.get(record.get("say", ""))
        if kind is None:  # of a crisp that was installed meanwhile
            close_all(fds)
            return
        self._hear(kind.from_json(record), fds)
