"""The arguments of `pytest.mark.oci(...)` and `pytest.mark.cri(...)` in test files, read without importing those."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]
FILES = ("unit/test_*.py", "integration/test_*.py", "e2e/test_*.py", "vm/inside/*.py")


@dataclass(frozen=True, slots=True)
class Marker:
    """One marker's arguments, and the test that has it as "directory/file.py::name"."""

    arguments: tuple[str, ...]
    test: str


def markers(kind: str) -> list[Marker]:
    """All markers of that kind, those of a whole module once for each of its tests."""
    files = (file for pattern in FILES for file in sorted(TESTS.glob(pattern)))
    return [marker for file in files for marker in _of_file(file, kind)]


def _of_file(file: Path, kind: str) -> Iterator[Marker]:
    text = file.read_text()
    if f"mark.{kind}(" not in text:
        return
    module = ast.parse(text, str(file))
    named = {ast.unparse(s.targets[0]): s.value for s in module.body if isinstance(s, ast.Assign)}
    value = named.get("pytestmark", ast.List([]))
    everywhere = value.elts if isinstance(value, ast.List) else [value]
    for statement in module.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and statement.name.startswith("test_"):
            for expression in (*everywhere, *statement.decorator_list):
                if (arguments := _arguments(named.get(ast.unparse(expression), expression), kind)) is not None:
                    yield Marker(arguments, f"{file.relative_to(TESTS)}::{statement.name}")


def _arguments(expression: ast.expr, kind: str) -> tuple[str, ...] | None:
    if not isinstance(expression, ast.Call) or ast.unparse(expression.func) != f"pytest.mark.{kind}":
        return None
    return tuple(ast.literal_eval(argument) for argument in expression.args)
