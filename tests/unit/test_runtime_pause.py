"""Containers that are stopped together."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from runtime.errors import NotRunning
from runtime.shim.container import Container
from runtime.shim.pause import Pause


class _Container:
    def __init__(self, *, running: bool = True) -> None:
        self.pause: Pause | None = None
        self.stopped = False
        self._running = running

    def freeze(self) -> None:
        if not self._running:
            raise NotRunning("freeze container: it is exited")
        self.stopped = True

    def thaw(self) -> None:
        self.stopped = False


class _Clock:
    """The shim's timers."""

    def __init__(self) -> None:
        self._now = 0.0
        self._timers: list[tuple[float, Callable[[], None]]] = []

    def later(self, delay: float, callback: Callable[[], None]) -> None:
        self._timers.append((self._now + delay, callback))

    def passes(self, seconds: float) -> None:
        until = self._now + seconds
        while due := sorted((timer for timer in self._timers if timer[0] <= until), key=lambda timer: timer[0]):
            self._timers.remove(due[0])
            self._now = due[0][0]
            due[0][1]()
        self._now = until


def _pause(clock: _Clock, *containers: _Container) -> Pause:
    return Pause(cast(list[Container], containers), clock.later)


def test_it_ends_with_its_time_and_what_is_stopped_again_by_others_goes_on_later() -> None:
    clock, one = _Clock(), _Container()
    _pause(clock, one).begin(5)
    clock.passes(4)
    assert one.stopped
    clock.passes(2)
    assert not one.stopped
    one.stopped = True  # as a criu does that found it so
    clock.passes(10)
    assert not one.stopped


def test_an_earlier_one_that_was_left_lets_nobody_go_on_whom_a_later_one_stopped() -> None:
    clock, one, two = _Clock(), _Container(), _Container()
    early = _pause(clock, one, two)
    early.begin(5)
    early.abandon()
    late = _pause(clock, one)
    late.begin(300)
    two.stopped = True
    clock.passes(200)
    assert (one.stopped, two.stopped) == (True, False)
    late.end()
    assert not one.stopped


def test_all_go_on_when_one_cannot_be_stopped() -> None:
    clock, one, gone = _Clock(), _Container(), _Container(running=False)
    with pytest.raises(NotRunning):
        _pause(clock, one, gone).begin(5)
    assert not one.stopped
