"""The fixture `told`: compares whole answers of CRI, and holds a test to what its markers claim.

A member counts as tested if an answer was equal to one that the test expected, and the member was not empty there.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.matrix import answers


class Told:
    """Call it with an answer and the expected one; `members` are those that had a value, as "Message.member"."""

    def __init__(self) -> None:
        self.members: set[str] = set()

    def __call__(self, answer: Any, expected: Any) -> None:
        if answer != expected:
            lines = difflib.unified_diff(str(expected).splitlines(), str(answer).splitlines(), "expected", "told")
            raise AssertionError(f"{type(answer).__name__}:\n" + "\n".join(lines))
        self.members.update(_members(expected))


def _members(message: Any) -> Iterator[str]:
    for field, value in message.ListFields():
        yield f"{field.containing_type.name}.{field.name}"
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for inner in value if field.is_repeated else (value,):
                yield from _members(inner)


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Iterator[Told]:
    """Fails a test that claims members (`@pytest.mark.answer`) which no answer that it compared had."""
    compared = Told()
    yield compared
    claims = [answers.claimed(*marker.args) for marker in request.node.iter_markers("answer")]
    if missing := sorted({member for claim in claims for member in claim} - compared.members - answers.UNSET.keys()):
        pytest.fail(f"claimed, but not compared: {', '.join(missing)}", pytrace=False)


def between(value: int, low: int, high: int) -> int:
    """The value, for an expected answer, if it is in the bounds."""
    assert low <= value <= high, f"{value} is not in {low}..{high}"
    return value
