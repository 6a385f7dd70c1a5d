"""Checks execve(2)'s limits on arguments and environment before anything is created.

No message repeats a value: kubelet puts messages into events, which more people may read than Secrets.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Final

from pods.errors import InvalidArgument
from pods.octets import octets_of
from pods.rules import PATH_BYTES

_ONE: Final = 32 * os.sysconf("SC_PAGE_SIZE") - 1  # bytes of one string without its NUL (MAX_ARG_STRLEN)
_ALL: Final = 6 << 20  # bytes of all strings, for any stack limit
_NAME: Final = 64  # characters of a variable's name to show in messages


def check_arguments(field: str, argv: Sequence[str]) -> None:
    """Refuse (InvalidArgument) an argument vector that execve rejects. `field` names it in the message."""
    sizes = [len(octets_of(text)) for text in argv]
    if sizes[0] > PATH_BYTES:
        raise InvalidArgument(f"{field}: the program's name has {sizes[0]} bytes, more than {PATH_BYTES}")
    _check(field, sizes, (f"word {number}" for number in range(len(argv))))


def check_environment(field: str, entries: Sequence[str]) -> None:
    """Refuse (InvalidArgument) an environment, as NAME=value, that execve rejects."""
    _check(field, [len(octets_of(entry)) for entry in entries], (f"{name_of(entry)!r}" for entry in entries))


def name_of(entry: str) -> str:
    """Return the name in NAME=value, cut to the length for messages."""
    return entry.partition("=")[0][:_NAME]


def _check(field: str, sizes: Sequence[int], names: Iterable[str]) -> None:
    for name, size in zip(names, sizes, strict=True):
        if size > _ONE:
            raise InvalidArgument(f"{field}: {name} has {size} bytes, more than {_ONE}")
    if sum(sizes) > _ALL:
        raise InvalidArgument(f"{field}: {sum(sizes)} bytes, more than {_ALL}")
