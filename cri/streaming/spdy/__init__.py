"""SPDY/3.1 without I/O, both sides of it: https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/.

Bytes go into `Connection.receive`, events come out; what it wants written comes from `Connection.take`.

The peer that matters is moby/spdystream, which kubelet, the API server and crictl are built on. It neither sends nor
honours WINDOW_UPDATE and SETTINGS, so flow control here is with those only that show that they do it (`windows`).
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
