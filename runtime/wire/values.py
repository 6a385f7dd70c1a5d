"""Frozen values that travel as JSON objects, by the names of their members: one encoder and one decoder for all."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, ClassVar, Self

    Readers = Mapping[str, Callable[[Any], object]]


class Value:
    """The base of a dataclass whose members JSON has, or that are such values themselves, in tuples or mappings too.

    Sender and receiver may be of different versions: a member that the sender does not know has its default, and one
    that the receiver does not know is passed over. So members are only ever added, with a default.
    """

    __slots__ = ()

    READ: ClassVar[Readers] = {}  # what makes members of JSON's lists and objects

    def to_json(self) -> dict[str, Any]:
        """The value as a JSON-serialisable object; `from_json` is its inverse."""
        return {name: _written(getattr(self, name)) for name in _members(self)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The value that `to_json` described. Raises TypeError for a member that is not there and has no default."""
        read = cls.READ
        return cls(
            **{
                name: read[name](record[name]) if name in read else record[name]
                for name in _members(cls)
                if name in record
            }
        )


def _members(value: Value | type[Value]) -> tuple[str, ...]:
    return value.__slots__  # as dataclass(slots=True) sets them


def _written(member: Any) -> object:
    if type(member) in _PLAIN:
        return member
    if isinstance(member, Value):
        return member.to_json()
    if isinstance(member, tuple):
        return [_written(item) for item in member]
    if isinstance(member, dict):
        return {key: _written(item) for key, item in member.items()}
    return member


_PLAIN = frozenset((str, int, bool, type(None)))  # as nearly all members are


def tuple_of(kind: type[Value]) -> Callable[[Any], object]:
    """What reads a list of such values."""
    return lambda items: tuple(map(kind.from_json, items))


def mapping_to(kind: type[Value]) -> Callable[[Any], object]:
    """What reads an object whose members are such values."""
    return lambda items: {key: kind.from_json(item) for key, item in items.items()}


def optional(kind: type[Value]) -> Callable[[Any], object]:
    """What reads such a value or null."""
    return lambda item: None if item is None else kind.from_json(item)
