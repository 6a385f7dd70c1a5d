"""Freezes containers of a pod together for a while, at most as long as the caller is connected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from runtime.errors import RuntimeCoreError
from runtime.logs.writer import complain

if TYPE_CHECKING:
    from runtime.shim.container import Container

# criu puts a container that it dumps back into the state it found, perhaps after the pause has ended.
_AGAIN_SECONDS: Final = (1.0, 3.0, 10.0, 30.0, 100.0)


class Pause:
    """The caller calls `begin` and `end`; `abandon` is called when the caller is gone or the time is over.

    A container that a later pause has frozen too is thawed by that one.
    """

    def __init__(self, containers: Sequence[Container], later: Callable[[float, Callable[[], None]], None]) -> None:
        self._containers = containers
        self._later = later
        self._ended = False

    @classmethod
    def of(cls, containers: Sequence[Container], later: Callable[[float, Callable[[], None]], None]) -> Pause:
        """Return the pause of containers that an earlier shim may have frozen."""
        pause = cls(containers, later)
        for container in containers:
            container.pause = pause
        return pause

    def begin(self, seconds: float) -> None:
        """Freeze all containers for at most `seconds`. Raises RuntimeCoreError after thawing all again."""
        try:
            for container in self._containers:
                container.pause = self
                container.freeze()
        except RuntimeCoreError:
            self.end()
            raise
        self._later(seconds, self.abandon)

    def end(self) -> None:
        """Thaw all containers. Raises the first RuntimeCoreError at the end."""
        self._ended = True
        failure: RuntimeCoreError | None = None
        for container in self._containers:
            if container.pause is not self:
                continue
            try:
                container.thaw()
            except RuntimeCoreError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def abandon(self) -> None:
        """Thaw all containers, now and repeatedly for some time."""
        if self._ended:
            return
        self._thaw()
        for seconds in _AGAIN_SECONDS:
            self._later(seconds, self._thaw)

    def _thaw(self) -> None:
        try:
            self.end()
        except RuntimeCoreError as error:
            complain(f"could not thaw a container: {error}")
