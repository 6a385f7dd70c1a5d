"""Plugins that did not answer: each is set apart for a while, twice as long each time, and then asked again.

A plugin whose call times out is disconnected, and most plugins connect again at once. Without this, a plugin that hangs
at each container would delay each container until the time limit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pods.model import ApartPlugin

_TIMES: Final = 5  # how much longer than its time limit a plugin is set apart at first
_LONGEST: Final = 300.0  # seconds
_FORGOTTEN: Final = 3600.0  # seconds after which a plugin that has not come back begins anew

_log = logging.getLogger("crisp.nri")


@dataclass(slots=True)
class _Silence:
    method: str  # the call without an answer
    times: int  # that it has not answered, since its last answer to that call
    until: float


class Apart:
    """What is known of plugins that did not answer, by index and name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._silent: dict[str, _Silence] = {}

    def silent(self, name: str, method: str, seconds: int) -> None:
        """Note that the plugin did not answer a call within `seconds`."""
        now = self._clock()
        self._silent = {one: kept for one, kept in self._silent.items() if now < kept.until + _FORGOTTEN}
        times = self._silent[name].times + 1 if name in self._silent else 1
        pause = min(_LONGEST, seconds * _TIMES * 2.0 ** (times - 1))
        self._silent[name] = _Silence(method, times, now + pause)
        fields = {"plugin": name, "call": method, "seconds": round(pause)}
        _log.error("plugin did not answer; it is set apart: pods go on without it", extra=fields)

    def answered(self, name: str, method: str) -> None:
        """Forget the silence of a plugin that answers the call which it had not answered."""
        if self._silent and (known := self._silent.get(name)) is not None and known.method == method:
            del self._silent[name]

    def left(self, name: str) -> float:
        """Return the seconds for which the plugin is not to be asked yet; 0 if it is not set apart."""
        known = self._silent.get(name)
        return max(0.0, known.until - self._clock()) if known is not None else 0.0

    def now(self) -> list[ApartPlugin]:
        """Return those that are set apart, by name."""
        found = ((name, known, self.left(name)) for name, known in sorted(self._silent.items()))
        return [ApartPlugin(name=name, call=known.method, seconds=left) for name, known, left in found if left]
