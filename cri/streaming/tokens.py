"""Tokens for requests: each is valid once, for one minute."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final

from cri.streaming.errors import TooManyPending
from cri.streaming.requests import Request

LIFETIME_SECONDS: Final = 60.0
_MOST: Final = 1000
_BYTES: Final = 16  # of randomness


class Tokens:
    """The requests whose clients have not come yet. `now` is a monotonic clock in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._requests: dict[str, tuple[float, Request]] = {}  # oldest first

    def issue(self, request: Request) -> str:
        """Return a new token for the request. Raises TooManyPending."""
        self._expire()
        if len(self._requests) >= _MOST:
            raise TooManyPending(f"streaming request: {_MOST} others wait for their clients: try again later")
        token = secrets.token_urlsafe(_BYTES)
        self.accept(token, request)
        return token

    def accept(self, token: str, request: Request) -> None:
        """Take a token that was issued elsewhere, just now."""
        self._requests[token] = (self._now() + LIFETIME_SECONDS, request)

    def redeem(self, token: str) -> Request | None:
        """Return the request of a valid token, and invalidate it; None for any other."""
        self._expire()
        _, request = self._requests.pop(token, (0.0, None))
        return request

    def __bool__(self) -> bool:
        self._expire()
        return bool(self._requests)

    def _expire(self) -> None:
        now = self._now()
        for token, (end, _) in list(self._requests.items()):
            if end > now:
                return
            del self._requests[token]
