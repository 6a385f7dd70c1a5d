"""Parses lists of CPUs and memory nodes as the kernel writes them: "0-3,7" (cpuset(7), "List format")."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_MOST: Final = 8192  # the largest NR_CPUS (CONFIG_MAXSMP); there are fewer nodes


def ranges(text: str) -> list[tuple[int, int]]:
    """Return the first and last number of each part; nothing for an empty list. Raises ValueError."""
    if text.count(",") >= _MOST:
        raise ValueError(f"expected a list of at most {_MOST} parts")
    found = []
    for part in text.split(",") if text.strip() else ():
        first, dash, last = part.strip().partition("-")
        ends = (first, last) if dash else (first, first)
        known = all(end.isascii() and end.isdecimal() and len(end) < 9 and int(end) < _MOST for end in ends)
        if not known or int(ends[0]) > int(ends[1]):
            raise ValueError(f'expected a list such as "0-3,7", got {text!r}')
        found.append((int(ends[0]), int(ends[1])))
    return found


def numbers(text: str) -> frozenset[int]:
    """Return the members of a list. Raises ValueError, as `ranges` does."""
    found: set[int] = set()
    beyond = -1  # the highest number so far: overlapping parts are not enumerated twice
    for first, last in sorted(ranges(text)):
        found.update(range(max(first, beyond + 1), last + 1))
        beyond = max(beyond, last)
    return frozenset(found)
