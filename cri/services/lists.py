"""Helpers of CRI's lists: filters, whose set members must all match, and pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

from google.protobuf.message import Message

PAGE_BYTES = 1 << 20  # kubelet accepts 16 MiB; small pages let other calls run in between


class Identified(Protocol):
    """An object with an id."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Identified)
M = TypeVar("M", bound=Message)


def by_id(items: Iterable[T], wanted: str) -> list[T]:
    """Return the item with that id, or the only one with that prefix, as CRI-O does; all items for ""."""
    if not wanted:
        return list(items)
    found = [item for item in items if item.id.startswith(wanted)]
    exact = [item for item in found if item.id == wanted]
    return exact or (found if len(found) == 1 else [])


def has_labels(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Return whether `labels` has every pair of `selector`."""
    return all(labels.get(key) == value for key, value in selector.items())


def pages(messages: Iterable[M]) -> Iterator[list[M]]:
    """Split the messages into pages of about `PAGE_BYTES`, each with at least one. No messages give no page.

    All messages are collected before the first page, so that the whole is as of one instant.
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
