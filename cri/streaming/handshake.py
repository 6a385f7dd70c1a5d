"""Parses the HTTP/1.1 request that opens each connection, and writes the response (101), with h11."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import h11

from cri.streaming.errors import Refused

WEBSOCKET: Final = "websocket"
SPDY: Final = "SPDY/3.1"
_MAX_REQUEST_BYTES: Final = 16 << 10
_WEBSOCKET_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_WEBSOCKET_VERSION: Final = "13"
_KEY_BYTES: Final = 16
_PROTOCOLS: Final = {WEBSOCKET: "sec-websocket-protocol", SPDY: "x-stream-protocol-version"}


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A request to upgrade to another protocol, checked against HTTP and RFC 6455."""

    transport: str  # WEBSOCKET or SPDY
    path: str
    query: str
    protocols: tuple[str, ...]  # that the client offers, the preferred one first
    key: str = ""  # WebSocket's


class Handshake:
    """Reads one request and writes its response."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_REQUEST_BYTES)
        self._request: h11.Request | None = None
        self._upgrade: Upgrade | None = None

    def receive(self, data: memoryview) -> Upgrade | None:
        """Return the upgrade once the request is complete. Raises Refused."""
        try:
            self._http.receive_data(bytes(data))
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    return None
                if isinstance(event, h11.Request):
                    self._request = _of_bounded_size(event)
                elif isinstance(event, h11.Data):
                    raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request must have no body")
                elif self._request is not None:  # the end of the request
                    self._upgrade = _upgrade(self._request)
                    return self._upgrade
                else:
                    raise Refused(HTTPStatus.BAD_REQUEST, "the request is missing")
        except h11.RemoteProtocolError as error:
            raise Refused(error.error_status_hint, str(error)) from error

    def rest(self) -> bytes:
        """Return what the client sent after its request."""
        return self._http.trailing_data[0]

    def switch(self, protocol: str) -> bytes:
        """Return the response that switches to the requested transport, and to `protocol` in it ("" for none)."""
        upgrade = self._upgrade
        assert upgrade is not None
        headers = [("Connection", "Upgrade"), ("Upgrade", upgrade.transport)]
        if upgrade.transport == WEBSOCKET:
            headers.append(("Sec-WebSocket-Accept", _accept(upgrade.key)))
        if protocol:
            headers.append((_PROTOCOLS[upgrade.transport], protocol))
        switching = HTTPStatus.SWITCHING_PROTOCOLS
        return self._send(h11.InformationalResponse(status_code=switching, headers=headers, reason=switching.phrase))

    def refuse(self, refused: Refused) -> bytes:
        """Return the response that refuses the request."""
        text = f"{refused}\n".encode()
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(text))),
            ("Connection", "close"),
            *refused.headers,
        ]
        reason = HTTPStatus(refused.status).phrase
        try:
            head = self._send(h11.Response(status_code=refused.status, headers=headers, reason=reason))
            return head + self._send(h11.Data(data=text)) + self._send(h11.EndOfMessage())
        except h11.LocalProtocolError:
            return b""  # the client's state in h11 allows no response

    def _send(self, event: h11.Event) -> bytes:
        return self._http.send(event) or b""


def _of_bounded_size(request: h11.Request) -> h11.Request:
    """Refuse a request that is too long. h11 bounds only a request that arrives in pieces."""
    size = len(request.target) + sum(len(name) + len(value) for name, value in request.headers)
    if size > _MAX_REQUEST_BYTES:
        raise Refused(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the request has more than {_MAX_REQUEST_BYTES} bytes"
        )
    return request


def _upgrade(request: h11.Request) -> Upgrade:
    headers = _joined(request.headers)
    if request.method not in (b"GET", b"POST"):
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "the method must be GET or POST", (("Allow", "GET, POST"),))
    wanted = _words(headers.get("upgrade", ""))
    if "upgrade" not in [word.lower() for word in _words(headers.get("connection", ""))] or not wanted:
        raise Refused(HTTPStatus.BAD_REQUEST, "the request must ask for an upgrade to WebSocket or SPDY/3.1")
    path, _, query = request.target.decode("latin-1").partition("?")
    for transport in (WEBSOCKET, SPDY):
        if transport.lower() in [word.lower() for word in wanted]:
            protocols = tuple(_words(headers.get(_PROTOCOLS[transport], "")))
            key = _key(request.method, headers) if transport == WEBSOCKET else ""
            return Upgrade(transport, path, query, protocols, key)
    asked = ", ".join(wanted)[:64]
    raise Refused(HTTPStatus.BAD_REQUEST, f"upgrade to {asked!r}: only WebSocket and SPDY/3.1 are supported")


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by lower-case name; repeated ones are joined to a list (RFC 9110, section 5.2)."""
    found: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _words(value: str) -> Sequence[str]:
    return [word.strip() for word in value.split(",") if word.strip()]


def _key(method: bytes, headers: Mapping[str, str]) -> str:
    """Return WebSocket's key (RFC 6455, section 4.2.1). Raises Refused."""
    if method != b"GET":
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "WebSocket's method must be GET", (("Allow", "GET"),))
    if headers.get("sec-websocket-version") != _WEBSOCKET_VERSION:
        version = (("Sec-WebSocket-Version", _WEBSOCKET_VERSION),)
        raise Refused(HTTPStatus.UPGRADE_REQUIRED, f"the version of WebSocket must be {_WEBSOCKET_VERSION}", version)
    key = headers.get("sec-websocket-key", "")
    try:
        if len(base64.b64decode(key, validate=True)) == _KEY_BYTES:
            return key
    except (binascii.Error, ValueError):
        pass
    raise Refused(HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Key must be 16 bytes in base64")


def _accept(key: str) -> str:
    return base64.b64encode(hashlib.sha1(key.encode() + _WEBSOCKET_GUID).digest()).decode()
