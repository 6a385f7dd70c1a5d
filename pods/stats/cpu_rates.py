"""How fast processor time is used, from the samples that are taken whenever somebody asks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

_SECOND: Final = 1_000_000_000
_WINDOW: Final = 10 * _SECOND  # what kubelet's own collector looks at
_SHORTEST: Final = 1 * _SECOND  # of less, the kernel's accounting by ticks would show
_OLDEST: Final = 150 * _SECOND  # kubelet asks every 10 s, metrics servers every 15 to 60; older is no present rate


class CpuRates:
    """Samples by the name of what is measured. Times are nanoseconds of one monotonic clock."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[tuple[int, int]]] = {}

    def rate(self, name: str, now: int, used: int, begun: int | None = None) -> int | None:
        """Nanoseconds of processor time a second, `used` being the whole until `now`.

        The mean of the last ten seconds or, where nobody asked then, of the time since somebody did. The first time
        it is the mean since `begun`, when nothing had been used yet. None when all that is too long ago, or too short.
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
        """Forget all others."""
        wanted = set(names)
        self._samples = {name: samples for name, samples in self._samples.items() if name in wanted}
