"""Modules of tests that are shared between boxes: each is one box's alone, the longest are first, unit tests last."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pytest

from tests import boxes


@dataclass(frozen=True, slots=True)
class Item:
    """What of a pytest.Item tells where it belongs."""

    path: Path
    name: str


def test_boxes_share_the_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(boxes.MARK, str(tmp_path))
    longest = boxes.LONGEST[0]
    files = ("unit/test_one.py", "integration/test_one.py", "unit/test_two.py", f"integration/{longest}")
    tests: Any = [Item(Path("/tests", file), name) for file in files for name in "abc"]
    by_turns = list(zip_longest(boxes.chosen(tests), boxes.chosen(tests)))
    # The second box leaves the first module, which the first box is busy with.
    assert [(one.path.name, one.name) for one, _other in by_turns[:3]] == [(longest, name) for name in "abc"]
    assert [other.path for _one, other in by_turns[:3]] == [Path("/tests/integration/test_one.py")] * 3
    done = [test for test in chain(*by_turns) if test]
    assert sorted(done, key=str) == sorted(tests, key=str)


def test_the_longest_are_there() -> None:
    there = {path.name for path in (Path(__file__).parents[1]).glob("*/test_*.py")}
    assert set(boxes.LONGEST) <= there
