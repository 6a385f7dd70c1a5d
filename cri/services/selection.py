"""What the lists' filters select. Every member that is set must hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar


class Identified(Protocol):
    """Anything that has an id."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Identified)


def by_id(items: Iterable[T], wanted: str) -> list[T]:
    """The item with that id or, as CRI-O has it, the only one whose id begins so; everything when "" is wanted."""
    if not wanted:
        return list(items)
    found = [item for item in items if item.id.startswith(wanted)]
    exact = [item for item in found if item.id == wanted]
    return exact or (found if len(found) == 1 else [])


def has_labels(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether `labels` has every pair of `selector`."""
    return all(labels.get(key) == value for key, value in selector.items())
