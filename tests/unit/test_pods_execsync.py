"""What ExecSync holds of a command's output."""

from __future__ import annotations

import os
import tracemalloc

import pytest

from pods.streams import exec_sync as execsync
from pods.streams.exec_sync import MAX_OUTPUT, _Budget, _Collector

_OWN = 256 << 10


def _fed(collector: _Collector, data: bytes) -> _Collector:
    for start in range(0, len(data), 32 << 10):
        os.write(collector.write, data[start : start + (32 << 10)])
        collector._take()
    return collector


@pytest.mark.trial("exec-output-is-bounded", "the output that all ExecSync hold together has a bound")
async def test_output_in_small_pieces_costs_what_it_has_of_bytes() -> None:
    collector = _Collector()
    tracemalloc.start()
    for _ in range(100_000):
        os.write(collector.write, b"xy")
        collector._take()
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    assert collector.finish() == b"xy" * 100_000


@pytest.mark.trial("exec-output-is-bounded", "the output that all ExecSync hold together has a bound")
async def test_all_output_together_has_a_bound_and_a_little_is_always_kept() -> None:
    budget = _Budget(1 << 20)
    loud, other = _Collector(budget), _Collector(budget)
    text = bytes(range(256)) * 8192  # 2 MiB
    _fed(loud, text)
    _fed(other, text)
    quiet = _fed(_Collector(budget), b"a probe's words")
    quiet.close_write()
    assert quiet.finish() == b"a probe's words"
    assert loud.finish() == text[: _OWN + (1 << 20)]
    _fed(other, b"what comes later, when there is room again, does not follow")
    assert other.finish() == text[:_OWN]
    assert _fed(_Collector(budget), text).finish() == text[: _OWN + (1 << 20)]
    given_up = _fed(_Collector(budget), text)
    given_up.end()
    assert budget.take(2 << 20) == 1 << 20


async def test_one_stream_has_its_own_bound() -> None:
    collector = _Collector(_Budget(1 << 30))
    _fed(collector, bytes(MAX_OUTPUT + 100_000))
    assert len(collector.finish()) == MAX_OUTPUT
    assert execsync._TOGETHER >= 4 * MAX_OUTPUT
