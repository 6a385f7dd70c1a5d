"""Checks of one field of a request. Each takes the field's path and value and returns the value, or refuses it."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sized
from enum import IntEnum
from typing import TypeVar

from pods import rules
from pods.errors import InvalidArgument

_MOST = 4096  # entries of a list, each of which costs a mount, a look at a file, or a line in one
_SHOWN = 128  # characters of a refused value that its message repeats
_LABEL_BYTES = 4096  # of a key and its value together; containerd's limit
_NAME_CHARACTERS = 253  # of a Kubernetes object's name, the longest that there is

E = TypeVar("E", bound=IntEnum)
S = TypeVar("S", bound=Sized)


def invalid(path: str, value: object, reason: str) -> InvalidArgument:
    """The error that refuses `value` at `path`."""
    shown = str(int(value)) if isinstance(value, int) else repr(value)
    if len(shown) > _SHOWN:
        shown = f"{shown[:_SHOWN]}..."
    return InvalidArgument(f"{path}: {shown} {reason}")


def missing(path: str) -> InvalidArgument:
    """The error for a field that must be set and is not."""
    return InvalidArgument(f"{path}: is required")


def few(path: str, values: S, most: int = _MOST) -> S:
    """A list, or a map, of at most so many entries."""
    if len(values) > most:
        raise InvalidArgument(f"{path}: has {len(values)} entries, more than {most}")
    return values


def text(path: str, value: str) -> str:
    """Any string that the kernel can be given."""
    if not rules.is_text(value):
        raise invalid(path, value, "contains a NUL byte")
    return value


def texts(path: str, values: Iterable[str]) -> tuple[str, ...]:
    """A list of such strings."""
    return tuple([unshown(f"{path}[{index}]", value) for index, value in enumerate(values)])


def unshown(path: str, value: str) -> str:
    """Any string that the kernel can be given, and that no message repeats.

    Values of variables, arguments, annotations: Secrets get there, and kubelet puts messages into events.
    """
    if not rules.is_text(value):
        raise InvalidArgument(f"{path}: contains a NUL byte")
    return value


def required(path: str, value: str) -> str:
    """A string that is not empty."""
    if not value:
        raise missing(path)
    return text(path, value)


def short(path: str, value: str, characters: int) -> str:
    """A string of a bounded length."""
    if len(text(path, value)) > characters:
        raise invalid(path, value, f"is longer than {characters} characters")
    return value


def name(path: str, value: str) -> str:
    """The name, namespace or uid of something: not empty, and no longer than Kubernetes lets one be."""
    return short(path, required(path, value), _NAME_CHARACTERS)


def words(path: str, values: Collection[str]) -> tuple[str, ...]:
    """A list of strings without white space, as a line of resolv.conf(5) takes them."""
    found = texts(path, few(path, values))
    for index, value in enumerate(found):
        matching(f"{path}[{index}]", value, rules.WORD)
    return found


def matching(path: str, value: str, form: rules.Form) -> str:
    """A string of the given form."""
    if not form.fits(value):
        raise invalid(path, value, f"must be {form.expected}")
    return value


def absolute(path: str, value: str) -> str:
    """An absolute path."""
    if not required(path, value).startswith("/"):
        raise invalid(path, value, "must be an absolute path")
    return usable(path, value)


def usable(path: str, value: str) -> str:
    """A path, or nothing, that the kernel does not find too long."""
    if fault := rules.fault_of_path(text(path, value)):
        raise invalid(path, value, fault)
    return value


def file(path: str, value: str) -> str:
    """The absolute path of a file, which has a name."""
    if not rules.names_file(absolute(path, value)):
        raise invalid(path, value, "does not end in the name of a file")
    return value


def below_root(path: str, value: str) -> str:
    """Where something is put in a container."""
    if not rules.is_below_root(absolute(path, value)):
        raise invalid(path, value, f"must be {rules.BELOW_ROOT}")
    return value


def absolute_if_set(path: str, value: str) -> str:
    """An absolute path, or nothing."""
    return absolute(path, value) if value else ""


def inside(path: str, value: str) -> str:
    """A path without ".." in it, so that joining it to a directory stays there."""
    if not rules.stays_inside(usable(path, value)):
        raise invalid(path, value, "must not contain '..'")
    return value


def relative_if_set(path: str, value: str) -> str:
    """A relative path that stays where it starts, or nothing."""
    if value.startswith("/"):
        raise invalid(path, value, "must be a relative path")
    return inside(path, value)


def between(path: str, value: int, low: int, high: int) -> int:
    """A whole number in low..high."""
    if not low <= value <= high:
        raise invalid(path, value, f"must be between {low} and {high}")
    return value


def at_least(path: str, value: int, low: int) -> int:
    """A whole number that is `low` or more."""
    if value < low:
        raise invalid(path, value, f"must be {low} or more")
    return value


def choice(path: str, value: int, kind: type[E], allowed: Container[E] | None = None) -> E:
    """A member of an enumeration: proto3 lets any number through."""
    try:
        member = kind(value)
    except ValueError:
        raise invalid(path, value, f"is no {kind.__name__} of CRI v1") from None
    if allowed is not None and member not in allowed:
        raise invalid(path, member.name, "is not supported here")
    return member


def label_map(path: str, values: Mapping[str, str]) -> dict[str, str]:
    """Labels: no empty key, and of a bounded size."""
    found = annotation_map(path, values)
    for key, value in found.items():
        if len(key.encode()) + len(value.encode()) > _LABEL_BYTES:
            raise InvalidArgument(f"{path}[{key[:_SHOWN]!r}]: is too long: {_LABEL_BYTES} bytes with its key at most")
    return found


def annotation_map(path: str, values: Mapping[str, str]) -> dict[str, str]:
    """Annotations: no empty key, any size."""
    for key, value in values.items():
        required(f"{path} key", key)
        unshown(f"{path}[{key[:_SHOWN]!r}]", value)
    return dict(values)
