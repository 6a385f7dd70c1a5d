"""Containers of a pod that are stopped together for a while, which ends with whoever asked for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from runtime.errors import RuntimeCoreError
from runtime.logs.writer import complain

if TYPE_CHECKING:
    from runtime.shim.container import Container

# A criu that dumps one of them puts it back into the state that it found, which may be after the pause's end.
_AGAIN_SECONDS: Final = (1.0, 3.0, 10.0, 30.0, 100.0)


class Pause:
    """`begin`, and `end` by the caller, or `abandon` when it is gone or the time is over.

    A container that a later pause has stopped, too, is that one's to let go on.
    """

    def __init__(self, containers: Sequence[Container], later: Callable[[float, Callable[[], None]], None]) -> None:
        self._containers = containers
        self._later = later
        self._ended = False

    def begin(self, seconds: float) -> None:
        """Stop every process of all; not for more than `seconds`. Raises RuntimeCoreError, when all go on."""
        try:
            for container in self._containers:
                container.pause = self
                container.freeze()
        except RuntimeCoreError:
            self.end()
            raise
        self._later(seconds, self.abandon)

    def end(self) -> None:
        """Let all go on. Raises RuntimeCoreError for the first that cannot."""
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
        """Let all go on, now and for some time."""
        if self._ended:
            return
        self._thaw()
        for seconds in _AGAIN_SECONDS:
            self._later(seconds, self._thaw)

    def _thaw(self) -> None:
        try:
            self.end()
        except RuntimeCoreError as error:
            complain(f"thaw: {error}")
