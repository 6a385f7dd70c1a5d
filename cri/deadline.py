"""Calls for which the client must set a deadline, and which keep it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from pods.errors import InvalidArgument

_Method = TypeVar("_Method", bound=Callable[..., Awaitable[Any]])


class Timed(Protocol):
    """The part of a call's context that has the deadline."""

    def time_remaining(self) -> float | None: ...


def with_deadline(method: _Method) -> _Method:
    """Mark a service's method that takes the seconds until the deadline as its second argument."""
    method.takes_deadline = True  # type: ignore[attr-defined]
    return method


def takes_deadline(method: object) -> bool:
    return getattr(method, "takes_deadline", False)


def seconds_left(context: Timed) -> float:
    """Return the seconds until the call's deadline. Raises InvalidArgument if the client set none."""
    left = context.time_remaining()
    if left is None:
        raise InvalidArgument("deadline: is required: set one on the call")
    return left
