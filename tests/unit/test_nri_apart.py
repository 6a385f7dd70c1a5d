"""How long a plugin that does not answer is set apart."""

from __future__ import annotations

from cri.nri.apart import Apart


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_each_silence_lasts_twice_as_long_up_to_five_minutes() -> None:
    clock = _Clock()
    apart = Apart(clock)
    lasted = []
    for _time in range(7):
        apart.silent("10-slow", "CreateContainer", 2)
        lasted.append(apart.left("10-slow"))
        clock.now += lasted[-1]
        assert not apart.left("10-slow")
        assert not apart.now()
    assert lasted == [10, 20, 40, 80, 160, 300, 300]
    assert not apart.left("20-slow")


def test_only_an_answer_to_that_call_ends_it() -> None:
    clock = _Clock()
    apart = Apart(clock)
    apart.silent("10-slow", "CreateContainer", 2)
    apart.answered("10-slow", "Synchronize")
    apart.answered("20-other", "CreateContainer")
    (told,) = apart.now()
    assert (told.name, told.call, told.seconds) == ("10-slow", "CreateContainer", 10)
    apart.silent("10-slow", "CreateContainer", 2)
    assert apart.left("10-slow") == 20
    apart.answered("10-slow", "CreateContainer")
    assert not apart.left("10-slow")
    apart.silent("10-slow", "CreateContainer", 2)
    assert apart.left("10-slow") == 10


def test_one_that_does_not_come_back_is_forgotten() -> None:
    clock = _Clock()
    apart = Apart(clock)
    apart.silent("10-slow", "CreateContainer", 2)
    clock.now += 2 * 3600
    apart.silent("10-slow", "CreateContainer", 2)
    assert apart.left("10-slow") == 10
