"""`crisp inspect --timeline`: the last start of a pod as a chart, a bar for each step, plugin and call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cri.admin.v1 import admin_pb2

_WIDTH: Final = 48  # columns of bars
_PAUSE: Final = 10_000_000_000  # nanoseconds without anything that end a start


def lines(answer: admin_pb2.WhyResponse) -> Iterator[str]:
    """Return the chart's lines, from the beginning of the last start on."""
    bars = _last_start([one for one in answer.timeline if one.took])
    if not bars:
        yield f"{answer.subject}: no start is recorded"
        return
    begin = min(one.at - one.took for one in bars)
    whole = max(one.at for one in bars) - begin
    names = [f"{one.container}: {one.text}" if one.container else one.text for one in bars]
    width = min(max(map(len, names)), 60)
    yield f"{answer.subject}: {whole / 1e6:.1f} ms"
    for one, name in zip(bars, names, strict=True):
        yield f"{name[:width]:{width}} |{_bar(one.at - one.took - begin, one.took, whole)}| {one.took / 1e6:.1f} ms"


def _last_start(timed: Sequence[admin_pb2.Moment]) -> list[admin_pb2.Moment]:
    """What follows the last pause, up to the last step of a start: commands and stops come after it."""
    steps = [number for number, one in enumerate(timed) if ": " in one.text and not one.text.startswith("ran ")]
    first = last = steps[-1] if steps else -1
    while first > 0 and timed[first].at - timed[first].took - timed[first - 1].at < _PAUSE:
        first -= 1
    return list(timed[first : last + 1]) if steps else []


def _bar(offset: int, took: int, whole: int) -> str:
    before = min(_WIDTH - 1, offset * _WIDTH // max(whole, 1))
    length = max(1, min(_WIDTH - before, round(took * _WIDTH / max(whole, 1))))
    return f"{' ' * before}{'#' * length}".ljust(_WIDTH)
