"""Encodes and decodes frozen values as JSON objects with the names of their members."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, ClassVar, Self

    Readers = Mapping[str, Callable[[Any], object]]


class Value:
    """Base of dataclasses whose members are JSON values, other such values, or tuples or mappings of them.

    Sender and receiver may have different versions. A member that the sender does not know gets its default; one that
    the receiver does not know is ignored. So members are only ever added, and have a default.
    """

    __slots__ = ()

    READ: ClassVar[Readers] = {}  # convert lists and objects of JSON to members

    def to_json(self) -> dict[str, Any]:
        """Return the value as a JSON-serialisable object; `from_json` is the inverse."""
        return {
            name: member if type(member := getattr(self, name)) in _PLAIN else _written(member)
            for name in _members(self)
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Build the value from `to_json`'s result. Raises TypeError if a member without a default is missing."""
        members = {name: record[name] for name in _members(cls) if name in record}
        for name, read in cls.READ.items():
            if name in members:
                members[name] = read(members[name])
        return cls(**members)


def _members(value: Value | type[Value]) -> tuple[str, ...]:
    return value.__slots__  # as dataclass(slots=True) sets them


def _written(member: Any) -> object:
    if isinstance(member, Value):
        return member.to_json()
    if isinstance(member, tuple):
        return [item if type(item) in _PLAIN else _written(item) for item in member]
    if isinstance(member, dict):
        return {key: _written(item) for key, item in member.items()}
    return member


_PLAIN = frozenset((str, int, bool, type(None)))  # nearly all members are of these types


def tuple_of(kind: type[Value]) -> Callable[[Any], object]:
    """Return a reader for a list of such values."""
    return lambda items: tuple(map(kind.from_json, items))


def mapping_to(kind: type[Value]) -> Callable[[Any], object]:
    """Return a reader for an object whose members are such values."""
    return lambda items: {key: kind.from_json(item) for key, item in items.items()}


def optional(kind: type[Value]) -> Callable[[Any], object]:
    """Return a reader for such a value or null."""
    return lambda item: None if item is None else kind.from_json(item)
