"""The error family of the streaming server."""

from __future__ import annotations


class StreamingError(Exception):
    """Base of the family."""


class TooManyPending(StreamingError):
    """More answered requests wait for their client than are kept (RESOURCE_EXHAUSTED)."""


class Refused(StreamingError):
    """An HTTP request that is answered with an error: `status` is HTTP's, `headers` go with the answer."""

    def __init__(self, status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class ProtocolViolation(StreamingError):
    """The peer broke the protocol: its connection ends."""
