"""SPDY/3.1 without I/O, both sides: https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/.

Received bytes go into `Connection.receive`, which returns events; `Connection.take` returns the bytes to send.

The peer that matters is moby/spdystream, used by kubelet, the API server and crictl. It neither sends nor honours
WINDOW_UPDATE and SETTINGS. So flow control is used only with peers that show that they implement it (`windows`).
"""

from cri.streaming.spdy.connection import Connection, Limits
from cri.streaming.spdy.events import (
    Ended,
    Event,
    GoneAway,
    Opened,
    Pong,
    Received,
    Replied,
    Reset,
    WindowOpened,
)
from cri.streaming.spdy.frames import GoAwayStatus, ResetStatus

__all__ = [
    "Connection",
    "Ended",
    "Event",
    "GoAwayStatus",
    "GoneAway",
    "Limits",
    "Opened",
    "Pong",
    "Received",
    "Replied",
    "Reset",
    "ResetStatus",
    "WindowOpened",
]
