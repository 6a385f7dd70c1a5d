"""Counts what containers have logged, for crispd's metrics: in sum, since crispd started."""

from __future__ import annotations

from collections.abc import Container

from runtime.wire.calls import Logged


class LogCounts:
    """The sum over all containers. Shims tell each container's counts since its start, and may do so again."""

    def __init__(self) -> None:
        self.total = Logged()
        self._last: dict[str, Logged] = {}

    def begun(self, container_id: str) -> None:
        """Count a container that starts now from its first line on."""
        self._last[container_id] = Logged()

    def heard(self, container_id: str, logged: Logged) -> None:
        """Add what is new. Of a container that an earlier crispd started, the first counts are where it begins.

        A shim's successor counts from 0.
        """
        before = self._last.get(container_id, logged)
        if any(getattr(logged, name) < getattr(before, name) for name in Logged.__slots__):
            before = Logged()
        self.total = Logged(
            *(getattr(self.total, name) + getattr(logged, name) - getattr(before, name) for name in Logged.__slots__)
        )
        self._last[container_id] = logged

    def forget_but(self, there: Container[str]) -> None:
        """Forget containers that are gone; what they logged stays counted."""
        self._last = {one: logged for one, logged in self._last.items() if one in there}
