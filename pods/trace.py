"""Where the time of a start goes: named steps, for the log (`crispd --trace-start`) and for metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

_log = logging.getLogger("crisp.trace")

StepReport = Callable[[str, str, float], None]  # operation, step, seconds


class Trace:
    """A list of steps; costs nothing when off."""

    __slots__ = ("_begun", "_log_it", "_name", "_report", "_steps", "on")

    def __init__(self, name: str, *, on: bool, report: StepReport | None = None) -> None:
        self.on = on or report is not None
        self._log_it = on
        self._report = report
        self._name = name
        self._begun = time.monotonic_ns() if self.on else 0
        self._steps: list[tuple[str, int]] = []

    def step(self, name: str) -> None:
        if self.on:
            self._steps.append((name, time.monotonic_ns()))

    def add(self, steps: Iterable[tuple[str, int]]) -> None:
        """Steps that another process noted by the same clock (CLOCK_MONOTONIC, nanoseconds)."""
        self._steps.extend(steps)

    def finish(self, object_id: str) -> None:
        """Log each step's own duration and the whole, in milliseconds, and report the steps."""
        if not self.on:
            return
        last = self._begun
        parts = []
        for name, at in sorted(self._steps, key=lambda step: step[1]):
            parts.append(f"{name} {(at - last) / 1e6:.2f}")
            if self._report is not None:
                self._report(self._name, name, (at - last) / 1e9)
            last = at
        if self._log_it:
            whole = (time.monotonic_ns() - self._begun) / 1e6
            _log.info("%s %s: %.2f ms: %s", self._name, object_id, whole, ", ".join(parts))
