"""Calls that must be given a deadline by their client, and keep it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from pods.errors import InvalidArgument

_Method = TypeVar("_Method", bound=Callable[..., Awaitable[Any]])


class Timed(Protocol):
    """The part of a call's context that knows of its deadline."""

    def time_remaining(self) -> float | None: ...


def with_deadline(method: _Method) -> _Method:
    """Marks a service's method that takes the seconds until the deadline beside the request."""
    method.takes_deadline = True  # type: ignore[attr-defined]
    return method


def takes_deadline(method: object) -> bool:
    return getattr(method, "takes_deadline", False)


def seconds_left(context: Timed) -> float:
    """Raises InvalidArgument where the client set no deadline."""
    left = context.time_remaining()
    if left is None:
        raise InvalidArgument("deadline: is required: set one on the call")
    return left
