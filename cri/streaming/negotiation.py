"""Chooses one of the protocols that a client offers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from cri.streaming.errors import Refused
from cri.streaming.handshake import SPDY, WEBSOCKET

_CHANNELS = re.compile(r"(?:v([2-5])\.)?(base64\.)?channel\.k8s\.io")
_STREAMS: Final = {"channel.k8s.io": 1, **{f"v{version}.channel.k8s.io": version for version in range(2, 6)}}
_PORTS: Final = "portforward.k8s.io"
TUNNEL: Final = "SPDY/3.1+portforward.k8s.io"
_ACCEPTED: Final = "X-Accepted-Stream-Protocol-Versions"


@dataclass(frozen=True, slots=True)
class Protocol:
    """The chosen protocol: remotecommand's version, and whether a WebSocket's messages are base64.

    `name` is for the response; "" if the client offered none.
    """

    name: str
    version: int
    text: bool = False


def remotecommand(transport: str, offered: Sequence[str]) -> Protocol:
    """Choose for exec and attach. Raises Refused."""
    if not offered:
        return Protocol("", version=1)
    for name in offered:
        if transport == SPDY and name in _STREAMS:
            return Protocol(name, _STREAMS[name])
        if transport == WEBSOCKET and (match := _CHANNELS.fullmatch(name)):
            return Protocol(name, int(match[1] or 1), text=bool(match[2]))
    raise _refused(offered, tuple(reversed(_STREAMS)))


def portforward(transport: str, offered: Sequence[str]) -> Protocol:
    """Choose for port-forward; `TUNNEL` is SPDY in a WebSocket. Raises Refused."""
    if not offered:
        return Protocol("", version=4)
    for name in offered:
        if transport == SPDY and name == _PORTS:
            return Protocol(name, version=1)
        if transport == WEBSOCKET and name == TUNNEL:
            return Protocol(name, version=1)
        if transport == WEBSOCKET and (match := _CHANNELS.fullmatch(name)) and match[1] == "4":
            return Protocol(name, version=4, text=bool(match[2]))
    accepted = (_PORTS,) if transport == SPDY else (TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io")
    raise _refused(offered, accepted)


def _refused(offered: Sequence[str], accepted: tuple[str, ...]) -> Refused:
    headers = tuple((_ACCEPTED, name) for name in accepted)
    shown = ", ".join(offered)[:128]
    message = f"none of the protocols {shown!r} is supported, only {', '.join(accepted)}"
    return Refused(HTTPStatus.FORBIDDEN, message, headers)
