"""The errors of the streaming server."""

from __future__ import annotations


class StreamingError(Exception):
    """Base class."""


class TooManyPending(StreamingError):
    """Too many accepted requests wait for their clients (RESOURCE_EXHAUSTED)."""


class NoProcess(StreamingError):
    """The process that serves sessions cannot be started (UNAVAILABLE)."""


class Refused(StreamingError):
    """An HTTP request to refuse with `status` and `headers`."""

    def __init__(self, status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class ProtocolViolation(StreamingError):
    """The peer broke the protocol; its connection ends."""
