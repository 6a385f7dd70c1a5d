"""Computes CPU rates from samples that are taken whenever a client asks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

_SECOND: Final = 1_000_000_000
_WINDOW: Final = 10 * _SECOND  # that of kubelet's own collector
_SHORTEST: Final = 1 * _SECOND  # in less, the kernel's accounting by ticks shows
_OLDEST: Final = 150 * _SECOND  # kubelet asks every 10 s, metrics servers every 15 to 60


class CpuRates:
    """Samples of CPU use, by name. Times are nanoseconds of one monotonic clock."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[tuple[int, int]]] = {}

    def rate(self, name: str, now: int, used: int, begun: int | None = None) -> int | None:
        """Return nanoseconds of CPU time per second; `used` is the total until `now`.

        It is the mean of the last ten seconds, or since the newest older sample. At the first call it is the mean since
        `begun`, when nothing had been used. Returns None if the samples are too old or too close together.
        """
        samples = self._samples.get(name)
        if samples is None:
            samples = self._samples[name] = deque()
            if begun is not None:
                samples.append((begun, 0))
        if samples and used < samples[-1][1]:
            samples.clear()  # a new cgroup of the same name
        while len(samples) > 1 and samples[1][0] <= now - _WINDOW:
            samples.popleft()
        while samples and samples[0][0] < now - _OLDEST:
            samples.popleft()
        rate = None
        if samples and now - samples[0][0] >= _SHORTEST:
            at, before = samples[0]
            rate = (used - before) * _SECOND // (now - at)
        if not samples or now - samples[-1][0] >= _SHORTEST:
            samples.append((now, used))
        return rate

    def keep(self, names: Iterable[str]) -> None:
        """Drop the samples of all other names."""
        wanted = set(names)
        self._samples = {name: samples for name, samples in self._samples.items() if name in wanted}
