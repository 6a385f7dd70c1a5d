"""Lists of processors as the kernel writes them."""

from __future__ import annotations

import pytest

from linux.cpu_lists import numbers, ranges


@pytest.mark.parametrize(
    ("text", "found"),
    [("", []), ("0", [(0, 0)]), ("0-3,7", [(0, 3), (7, 7)]), ("1, 2-2", [(1, 1), (2, 2)]), ("8191", [(8191, 8191)])],
)
def test_lists(text: str, found: list[tuple[int, int]]) -> None:
    assert ranges(text) == found
    assert numbers(text) == {number for first, last in found for number in range(first, last + 1)}


def test_parts_that_name_the_same_are_gone_through_once() -> None:
    assert numbers("0-8191," * 8191 + "5") == set(range(8192))
    with pytest.raises(ValueError, match="at most 8192 parts"):
        numbers("0," * 8192 + "0")


@pytest.mark.parametrize(
    "text", ["a", "1-", "-1", "2-1", "0,,1", "\u0663", "8192", "0-999999999999", "9" * 5000, "1-2-3"]
)
def test_what_is_no_list(text: str) -> None:
    """One without a bound would be counted to its end."""
    with pytest.raises(ValueError, match="expected a list such as"):
        numbers(text)
