"""The streaming server: listens, issues URLs, and turns requests to them into commands and forwarded ports."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from cri.errors import StartupError
from cri.streaming import negotiation, remotecommand
from cri.streaming.address import StreamAddress
from cri.streaming.connection import RECEIVE_BYTES, STALLED_SECONDS, ClientConnection, Guests, Timeouts
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
_CLOSE_SECONDS: Final = 5.0


class StreamingServer:
    """Serves the requests that URLs were issued for. All methods run on the daemon's event loop."""

    def __init__(self, runtime: Runtime, address: StreamAddress, timeouts: Timeouts | None = None) -> None:
        self._runtime = runtime
        self._address = address
        self._timeouts = timeouts or Timeouts()
        self._tokens = Tokens(time.monotonic)
        self._server: asyncio.Server | None = None
        self._tls: ssl.SSLContext | None = None
        self._base = ""
        self.guests = Guests()
        self._tasks: set[asyncio.Task[None]] = set()
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._page = Page()

    async def start(self) -> None:
        """Listen. Raises StartupError."""
        address = self._address
        self._tls = context = _tls(address)
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                self.connection,
                address.host.strip("[]"),
                address.port,
                ssl=context,
                ssl_handshake_timeout=self._timeouts.creation if context else None,
                ssl_shutdown_timeout=STALLED_SECONDS if context else None,
            )
        except OSError as error:
            raise StartupError(f"listen on {address.host}:{address.port} for streaming: {error.strerror}") from error
        port = self._server.sockets[0].getsockname()[1]
        self._base = f"{'https' if context else 'http'}://{address.host}:{port}"

    def reload_certificates(self) -> None:
        """Use the present certificate files for new connections. On an error (StartupError) nothing changes."""
        if self._tls is not None and _tls(self._address) is not None:  # tested with another context first
            _load_certificates(self._tls, self._address)

    async def close(self) -> None:
        """Stop listening and end all connections; exec'd commands end with them, containers do not."""
        if self._server is None:
            return
        self._server.close()
        self.guests.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                while not self.idle:
                    await asyncio.sleep(0)
                    if self._tasks:
                        await asyncio.wait(tuple(self._tasks))

    @property
    def idle(self) -> bool:
        """Whether no connection is open and all earlier ones are cleaned up."""
        return not self.guests and not self._tasks

    def url(self, request: Request) -> str:
        """Return a URL for the request, valid once and for one minute. Raises TooManyPending."""
        return f"{self._base}/{kind(request)}/{self._tokens.issue(request)}"

    def connection(self) -> ClientConnection:
        """Make the protocol object for a connection, as asyncio's factory."""
        return ClientConnection(self._accept, self._buffer, self._page, self._timeouts, self.guests)

    def _accept(self, wire: ClientConnection, upgrade: Upgrade) -> tuple[Link, str]:
        _, _, rest = upgrade.path.partition("/")
        wanted, _, token = rest.partition("/")
        request = self._tokens.redeem(token)
        if request is None or kind(request) != wanted:
            reason = "unknown or expired URL: each can be used once, within a minute; request a new one"
            raise Refused(HTTPStatus.NOT_FOUND, reason)
        wire.label = (wanted, "spdy" if upgrade.transport == SPDY else "websocket")
        if isinstance(request, Ports):
            wire.fields = {"stream": wanted, "sandbox": request.sandbox_id}
            return self._port_forward(wire, upgrade, request)
        wire.fields = {"stream": wanted, "container": request.container_id}
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
        self._tasks.add(session.task)
        session.task.add_done_callback(self._tasks.discard)
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
        session = PortForward(self._runtime, link, request.sandbox_id, self._timeouts.creation, self._tasks)
        link.listener = session
        if isinstance(link, WebSocketLink):
            session.forward(request.ports)
        return link, protocol.name


def _tls(address: StreamAddress) -> ssl.SSLContext | None:
    """Return the TLS context; None without TLS. Raises StartupError."""
    if address.cert is None or address.key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_certificates(context, address)
    return context


def _load_certificates(context: ssl.SSLContext, address: StreamAddress) -> None:
    assert address.cert is not None, "TLS needs a certificate"
    try:
        context.load_cert_chain(address.cert, address.key)
        if address.ca is not None:
            context.load_verify_locations(address.ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(path) for path in (address.cert, address.key, address.ca) if path)
        raise StartupError(f"read the streaming server's certificates {files}: {error}") from error
