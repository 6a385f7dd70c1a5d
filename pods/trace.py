"""Measures the steps of a start, for the log (`crispd --trace-start`), metrics and traces."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

_log = logging.getLogger("crisp.trace")

# Operation, step, begin and end in nanoseconds of CLOCK_MONOTONIC.
StepReport = Callable[[str, str, int, int], None]
# Entered around a part of a call, with its name and attributes.
Around = Callable[[str, Mapping[str, str]], AbstractContextManager[object]]


class Trace:
    """Reports each step of one operation as it is taken; costs nothing when off."""

    __slots__ = ("_begun", "_last", "_log_it", "_name", "_reports", "_steps", "on")

    def __init__(self, name: str, *, on: bool, reports: Sequence[StepReport] = ()) -> None:
        """`on`: `finish` also logs the steps."""
        self.on = on or bool(reports)
        self._log_it = on
        self._reports = reports
        self._name = name
        self._begun = self._last = time.monotonic_ns() if self.on else 0
        self._steps: list[str] = []

    def step(self, name: str) -> None:
        if self.on:
            self._tell(name, time.monotonic_ns())

    def add(self, steps: Iterable[tuple[str, int]]) -> None:
        """Add steps that another process measured with the same clock (CLOCK_MONOTONIC, nanoseconds)."""
        for name, at in sorted(steps, key=lambda step: step[1]):
            self._tell(name, at)

    def _tell(self, name: str, at: int) -> None:
        for report in self._reports:
            report(self._name, name, self._last, at)
        if self._log_it:
            self._steps.append(f"{name} {(at - self._last) / 1e6:.2f}")
        self._last = at

    def finish(self, object_id: str) -> None:
        """Log the duration of each step and of the whole, in milliseconds."""
        if self._log_it:
            whole = (time.monotonic_ns() - self._begun) / 1e6
            _log.info(self._name, extra={"id": object_id, "ms": f"{whole:.2f}", "steps": ", ".join(self._steps)})
