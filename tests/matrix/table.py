"""Rows of a table, what is wrong with them, and the page they make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_MADE = "<!-- Made by python -m tests.matrix from markers on the tests. -->"
_SHOWN = 3  # tests in a row


@dataclass(frozen=True, slots=True)
class Row:
    """`refusal` is how what is not supported is answered, `note` what its effect is where that needs a word."""

    name: str
    tests: tuple[str, ...]
    refusal: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    rows: tuple[Row, ...]


def untested(sections: Iterable[Section]) -> list[str]:
    """The rows that no test has a marker for."""
    return [f"{section.title}: {row.name}" for section in sections for row in section.rows if not row.tests]


def strangers(marked: Iterable[str], known: Iterable[str]) -> list[str]:
    """Names in markers that no row has: misspelt, or of something that is gone."""
    return sorted(set(marked) - set(known))


def page(title: str, introduction: str, head: str, sections: Sequence[Section]) -> str:
    parts = [f"# {title}\n\n{_MADE}\n\n{introduction.strip()}\n"]
    for section in sections:
        parts.append(f"\n## {section.title}\n\n| {head} | supported | test |\n| --- | --- | --- |\n")
        parts += map(_line, section.rows)
    return "".join(parts)


def _line(row: Row) -> str:
    supported = f"no: {row.refusal}" if row.refusal else f"yes: {row.note}" if row.note else "yes"
    shown = ", ".join(f"`{_short(test)}`" for test in row.tests[:_SHOWN])
    more = f" and {len(row.tests) - _SHOWN} more" if len(row.tests) > _SHOWN else ""
    return f"| `{row.name}` | {supported} | {shown}{more} |\n"


def _short(test: str) -> str:
    file, _, name = test.partition("::")
    return f"{file.removesuffix('.py')} {name.removeprefix('test_')}"


def by_name(pairs: Iterable[tuple[str, str]]) -> Mapping[str, tuple[str, ...]]:
    """Tests by what they are marked with, integration tests first: they show the effect."""
    found: dict[str, list[str]] = {}
    for name, test in pairs:
        if test not in found.setdefault(name, []):
            found[name].append(test)
    return {name: tuple(sorted(tests, key=_rank)) for name, tests in found.items()}


def _rank(test: str) -> tuple[bool, str]:
    return not test.startswith("integration/"), test
