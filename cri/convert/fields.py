"""Checks single fields of a request. Each function takes the field's path and value, and returns or refuses it."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sized
from enum import IntEnum
from typing import TypeVar

from pods import rules
from pods.errors import InvalidArgument

_MOST = 4096  # entries of a list; each costs a mount, a look at a file, or a line in a file
_SHOWN = 128  # characters of a refused value to show
_LABEL_BYTES = 4096  # of a key and its value together; containerd's limit
_NAME_CHARACTERS = 253  # of a Kubernetes object's name, the longest that there is

E = TypeVar("E", bound=IntEnum)
S = TypeVar("S", bound=Sized)


def invalid(path: str, value: object, reason: str) -> InvalidArgument:
    """Return the error that refuses `value` at `path`."""
    shown = str(int(value)) if isinstance(value, int) else repr(value)
    if len(shown) > _SHOWN:
        shown = f"{shown[:_SHOWN]}..."
    return InvalidArgument(f"{path}: {shown} {reason}")


def missing(path: str) -> InvalidArgument:
    """Return the error for a required field that is not set."""
    return InvalidArgument(f"{path}: is required")


def few(path: str, values: S, most: int = _MOST) -> S:
    """Accept a list or map with at most `most` entries."""
    if len(values) > most:
        raise InvalidArgument(f"{path}: has {len(values)} entries, more than {most}")
    return values


def text(path: str, value: str) -> str:
    """Accept any string without NUL."""
    if not rules.is_text(value):
        raise invalid(path, value, "contains a NUL byte")
    return value


def texts(path: str, values: Iterable[str]) -> tuple[str, ...]:
    """Accept a list of strings without NUL; messages do not show them."""
    return tuple([unshown(f"{path}[{index}]", value) for index, value in enumerate(values)])


def unshown(path: str, value: str) -> str:
    """Accept any string without NUL; messages do not show it.

    For values of variables, arguments, annotations: they may hold secrets, and kubelet puts messages into events.
    """
    if not rules.is_text(value):
        raise InvalidArgument(f"{path}: contains a NUL byte")
    return value


def required(path: str, value: str) -> str:
    """Accept a string that is not empty."""
    if not value:
        raise missing(path)
    return text(path, value)


def short(path: str, value: str, characters: int) -> str:
    """Accept a string of at most so many characters."""
    if len(text(path, value)) > characters:
        raise invalid(path, value, f"is longer than {characters} characters")
    return value


def name(path: str, value: str) -> str:
    """Accept a name, namespace or uid: not empty, and no longer than Kubernetes allows."""
    return short(path, required(path, value), _NAME_CHARACTERS)


def words(path: str, values: Collection[str]) -> tuple[str, ...]:
    """Accept a list of strings without white space, for a line of resolv.conf(5)."""
    found = texts(path, few(path, values))
    for index, value in enumerate(found):
        matching(f"{path}[{index}]", value, rules.WORD)
    return found


def matching(path: str, value: str, form: rules.Form) -> str:
    """Accept a string of the given form."""
    if not form.fits(value):
        raise invalid(path, value, f"must be {form.expected}")
    return value


def absolute(path: str, value: str) -> str:
    """Accept an absolute path."""
    if not required(path, value).startswith("/"):
        raise invalid(path, value, "must be an absolute path")
    return usable(path, value)


def usable(path: str, value: str) -> str:
    """Accept "", or a path that is not too long for the kernel."""
    if fault := rules.fault_of_path(text(path, value)):
        raise invalid(path, value, fault)
    return value


def file(path: str, value: str) -> str:
    """Accept the absolute path of a file."""
    if not rules.names_file(absolute(path, value)):
        raise invalid(path, value, "must end in a file name")
    return value


def below_root(path: str, value: str) -> str:
    """Accept a mount point in a container."""
    if not rules.is_below_root(absolute(path, value)):
        raise invalid(path, value, f"must be {rules.BELOW_ROOT}")
    return value


def absolute_if_set(path: str, value: str) -> str:
    """Accept an absolute path or ""."""
    return absolute(path, value) if value else ""


def inside(path: str, value: str) -> str:
    """Accept a path without "..", which stays below what it is joined to."""
    if not rules.stays_inside(usable(path, value)):
        raise invalid(path, value, "must not contain '..'")
    return value


def relative_if_set(path: str, value: str) -> str:
    """Accept a relative path without "..", or ""."""
    if value.startswith("/"):
        raise invalid(path, value, "must be a relative path")
    return inside(path, value)


def between(path: str, value: int, low: int, high: int) -> int:
    """Accept a whole number in low..high."""
    if not low <= value <= high:
        raise invalid(path, value, f"must be between {low} and {high}")
    return value


def at_least(path: str, value: int, low: int) -> int:
    """Accept a whole number of at least `low`."""
    if value < low:
        raise invalid(path, value, f"must be {low} or more")
    return value


def choice(path: str, value: int, kind: type[E], allowed: Container[E] | None = None) -> E:
    """Accept a member of an enumeration; proto3 does not check that."""
    try:
        member = kind(value)
    except ValueError:
        raise invalid(path, value, f"is not a {kind.__name__} of CRI v1") from None
    if allowed is not None and member not in allowed:
        raise invalid(path, member.name, "is not supported here")
    return member


def label_map(path: str, values: Mapping[str, str]) -> dict[str, str]:
    """Accept labels: no empty key, and a bounded size."""
    found = annotation_map(path, values)
    for key, value in found.items():
        if len(key.encode()) + len(value.encode()) > _LABEL_BYTES:
            reason = f"is too long: key and value may have {_LABEL_BYTES} bytes at most"
            raise InvalidArgument(f"{path}[{key[:_SHOWN]!r}]: {reason}")
    return found


def annotation_map(path: str, values: Mapping[str, str]) -> dict[str, str]:
    """Accept annotations: no empty key, any size."""
    for key, value in values.items():
        required(f"{path} key", key)
        unshown(f"{path}[{key[:_SHOWN]!r}]", value)
    return dict(values)
