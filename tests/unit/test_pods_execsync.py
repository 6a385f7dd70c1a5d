"""What ExecSync holds of a command's output."""

from __future__ import annotations

import tracemalloc

import pytest

from pods.streams import exec_sync as execsync
from pods.streams.exec_sync import MAX_OUTPUT, Output, _Budget

_OWN = 256 << 10


def _fed(output: Output, data: bytes) -> Output:
    for start in range(0, len(data), 32 << 10):
        output.add(data[start : start + (32 << 10)])
    return output


@pytest.mark.trial("exec-output-is-bounded", "the output that all ExecSync hold together has a bound")
def test_output_in_small_pieces_costs_what_it_has_of_bytes() -> None:
    output = Output()
    tracemalloc.start()
    for _ in range(100_000):
        output.add(b"xy")
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    assert output.take() == b"xy" * 100_000


@pytest.mark.trial("exec-output-is-bounded", "the output that all ExecSync hold together has a bound")
def test_all_output_together_has_a_bound_and_a_little_is_always_kept() -> None:
    budget = _Budget(1 << 20)
    loud, other = Output(budget), Output(budget)
    text = bytes(range(256)) * 8192  # 2 MiB
    _fed(loud, text)
    _fed(other, text)
    quiet = _fed(Output(budget), b"a probe's words")
    assert quiet.take() == b"a probe's words"
    assert loud.take() == text[: _OWN + (1 << 20)]
    _fed(other, b"what comes later, when there is room again, does not follow")
    assert other.take() == text[:_OWN]
    assert _fed(Output(budget), text).take() == text[: _OWN + (1 << 20)]
    given_up = _fed(Output(budget), text)
    given_up.forget()
    assert budget.take(2 << 20) == 1 << 20


def test_one_stream_has_its_own_bound() -> None:
    output = _fed(Output(_Budget(1 << 30)), bytes(MAX_OUTPUT + 100_000))
    assert len(output.take()) == MAX_OUTPUT
    assert execsync._TOGETHER >= 4 * MAX_OUTPUT
