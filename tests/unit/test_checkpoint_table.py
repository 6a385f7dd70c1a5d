"""docs/checkpoints.md says which programs continue, as the tests have it."""

from __future__ import annotations

from pathlib import Path

from tests import programs


def test_the_table_is_that_of_the_tests() -> None:
    page = Path(__file__).parents[2] / "docs/checkpoints.md"
    assert programs.table() in page.read_text(), f"put this there:\n{programs.table()}"
