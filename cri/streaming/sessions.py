"""Turns clients' connections into commands and forwarded ports, for those that have a token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from cri.streaming import negotiation, remotecommand
from cri.streaming.connection import RECEIVE_BYTES, ClientConnection, Guests, Timeouts
from cri.streaming.errors import Refused
from cri.streaming.handshake import SPDY, Upgrade
from cri.streaming.link import Link
from cri.streaming.negotiation import TUNNEL
from cri.streaming.page import Page
from cri.streaming.portforward import PortForward
from cri.streaming.remotecommand import Channel, RemoteCommand
from cri.streaming.requests import Command, Ports, Request, kind
from cri.streaming.spdylink import SpdyLink, TunnelledSpdyLink
from cri.streaming.tokens import Tokens
from cri.streaming.websocket import WebSocketLink

if TYPE_CHECKING:
    from cri.streaming.runtime import Runtime

_MAX_PAIRS: Final = 100  # per WebSocket: a channel's number is one byte


class Sessions:
    """All sessions of a process. `changed` is called when one begins or ends, and for each refused request."""

    def __init__(
        self, runtime: Runtime, timeouts: Timeouts | None = None, changed: Callable[[], None] = lambda: None
    ) -> None:
        self._runtime = runtime
        self._timeouts = timeouts or Timeouts()
        self._changed = changed
        self._tokens = Tokens(time.monotonic)
        self._tasks: set[asyncio.Task[None]] = set()
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._page = Page()
        self.guests = Guests(changed)
        self.redeemed: list[str] = []  # tokens that clients have shown; the owner takes them

    @property
    def idle(self) -> bool:
        """Whether no connection is open and all earlier ones are cleaned up."""
        return not self.guests and not self._tasks

    def expect(self, token: str, request: Request) -> None:
        """Serve the client that comes with the token, once and within a minute."""
        self._tokens.accept(token, request)

    def connection(self) -> ClientConnection:
        """Make the protocol object for a connection, as asyncio's factory."""
        return ClientConnection(self._accept, self._buffer, self._page, self._timeouts, self.guests)

    def _accept(self, wire: ClientConnection, upgrade: Upgrade) -> tuple[Link, str]:
        _, _, rest = upgrade.path.partition("/")
        wanted, _, token = rest.partition("/")
        request = self._tokens.redeem(token)
        if request is not None:
            self.redeemed.append(token)
        if request is None or kind(request) != wanted:
            reason = "unknown or expired URL: each can be used once, within a minute; request a new one"
            raise Refused(HTTPStatus.NOT_FOUND, reason)
        wire.label = (wanted, "spdy" if upgrade.transport == SPDY else "websocket")
        if isinstance(request, Ports):
            wire.fields = {"stream": wanted, "sandbox": request.place.sandbox}
            return self._port_forward(wire, upgrade, request)
        wire.fields = {"stream": wanted, "container": request.place.container}
        return self._command(wire, upgrade, request)

    def _command(self, wire: ClientConnection, upgrade: Upgrade, command: Command) -> tuple[Link, str]:
        protocol = negotiation.remotecommand(upgrade.transport, upgrade.protocols)
        streams: dict[Channel, int] = {}
        link: Link
        if upgrade.transport == SPDY:
            link = SpdyLink(wire)
        else:
            streams = {channel: int(channel) for channel in Channel}
            link = WebSocketLink(
                wire,
                streams=len(streams),
                text=protocol.text,
                closes=protocol.version >= 5,
                greeting=remotecommand.greeting(command),
            )
        session = RemoteCommand(self._runtime, link, command, protocol.version, streams, self._timeouts.creation)
        link.listener = session
        self._follow(session.task)
        return link, protocol.name

    def _port_forward(self, wire: ClientConnection, upgrade: Upgrade, request: Ports) -> tuple[Link, str]:
        protocol = negotiation.portforward(upgrade.transport, upgrade.protocols)
        link: Link
        if upgrade.transport == SPDY:
            link = SpdyLink(wire)
        elif protocol.name == TUNNEL:
            link = TunnelledSpdyLink(wire)
        else:
            ports = request.ports
            if not 0 < len(ports) <= _MAX_PAIRS:
                raise Refused(HTTPStatus.BAD_REQUEST, f"port-forward over WebSocket takes 1 to {_MAX_PAIRS} ports")
            numbers = [number for port in ports for number in (port, port)]
            greeting = [(stream, port.to_bytes(2, "little")) for stream, port in enumerate(numbers)]
            link = WebSocketLink(wire, streams=len(numbers), text=protocol.text, closes=False, greeting=greeting)
        session = PortForward(self._runtime, link, request.place, self._timeouts.creation, self._follow)
        link.listener = session
        if isinstance(link, WebSocketLink):
            session.forward(request.ports)
        return link, protocol.name

    def _follow(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed()
