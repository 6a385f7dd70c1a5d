"""The arguments of a command that are no flags."""

from __future__ import annotations

from runtime.command.flags import UsageError


def only(operands: list[str], name: str) -> str:
    """The single one. Raises UsageError."""
    if len(operands) != 1:
        raise UsageError(f"expected exactly one argument, {name}, got {len(operands)}")
    return operands[0]


def first(operands: list[str], name: str) -> tuple[str, list[str]]:
    """The first one and the others. Raises UsageError."""
    if not operands:
        raise UsageError(f"expected {name}")
    return operands[0], operands[1:]
