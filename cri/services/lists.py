"""What CRI's lists have in common: filters, every member of which that is set must hold, and pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

from google.protobuf.message import Message

PAGE_BYTES = 1 << 20  # kubelet takes 16 MiB; small pages leave other calls their turn


class Identified(Protocol):
    """Anything that has an id."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Identified)
M = TypeVar("M", bound=Message)


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


def pages(messages: Iterable[M]) -> Iterator[list[M]]:
    """The messages in lists of about `PAGE_BYTES`, one at least in each. An empty list has no pages.

    What is to be sent is taken before the first page: the whole is as of one moment.
    """
    page: list[M] = []
    room = PAGE_BYTES
    for message in list(messages):
        length = message.ByteSize()
        if page and length > room:
            yield page
            page, room = [], PAGE_BYTES
        page.append(message)
        room -= length
    if page:
        yield page
