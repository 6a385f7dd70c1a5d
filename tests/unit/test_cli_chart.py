"""A start drawn in a terminal."""

from __future__ import annotations

from cri.admin.v1 import admin_pb2
from cri.client import chart

_MS = 1_000_000


def _moment(at: int, took: int, text: str, container: str = "") -> admin_pb2.Moment:
    return admin_pb2.Moment(at=at * _MS, took=took * _MS, text=text, container=container, count=1)


def test_bars_lie_where_their_time_was_and_an_earlier_start_is_left_out() -> None:
    answer = admin_pb2.WhyResponse(
        subject="pod n/web",
        timeline=[
            _moment(1_000, 500, "run pod sandbox: network added"),
            _moment(60_010, 10, "run pod sandbox: files written"),
            _moment(60_100, 0, "pod sandbox s started"),
            _moment(60_100, 90, "run pod sandbox: network added"),
            _moment(60_200, 100, "start container: program runs", "main"),
            _moment(90_000, 5, "ran 'true': exit code 0", "main"),
        ],
    )
    title, *bars = chart.lines(answer)
    assert title == "pod n/web: 200.0 ms"
    cells = [line.split("|")[1] for line in bars]
    assert [len(cell) for cell in cells] == [48] * 3
    assert cells[0].startswith("##  ")
    assert cells[1].strip() == "#" * 22
    assert cells[2] == " " * 24 + "#" * 24
    assert bars[2].startswith("main: start container: program runs")
    assert bars[2].endswith("| 100.0 ms")


def test_what_never_started_has_no_chart() -> None:
    answer = admin_pb2.WhyResponse(subject="image a")
    assert list(chart.lines(answer)) == ["image a: no start is recorded"]
