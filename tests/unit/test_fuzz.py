"""A short run of each fuzzer, always the same: see tests/fuzz for long ones."""

from __future__ import annotations

import pytest

from tests.fuzz.run import attempt, run
from tests.fuzz.targets import TARGETS, Target

_INPUTS = 150


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_inputs_are_read_or_refused(target: Target) -> None:
    """And the first ones are read: the others are variants of those, and would all end in the same early error."""
    assert [attempt(target, data) for data in target.seeds()] == [""] * len(target.seeds())
    outcome = run(target, lambda outcome: outcome.tried < _INPUTS)
    assert outcome.found == {}
