"""What execve(2) takes of arguments and environment, so that more is refused before anything is made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from pods.errors import InvalidArgument

_ONE: Final = 32 * os.sysconf("SC_PAGE_SIZE") - 1  # bytes of one string without its NUL (MAX_ARG_STRLEN)
_ALL: Final = 6 << 20  # bytes of all strings, however large the stack may grow
_PROGRAM: Final = 4095  # PATH_MAX without its NUL


def check_arguments(field: str, argv: Sequence[str]) -> None:
    """Refuse (InvalidArgument) an argument vector that no stack could hold. `field` names it in the message."""
    if len(argv[0].encode()) > _PROGRAM:
        raise InvalidArgument(f"{field}: {argv[0][:64]!r}... is no program: its name is longer than {_PROGRAM} bytes")
    check_strings(field, argv)


def check_strings(field: str, strings: Sequence[str]) -> None:
    """Refuse (InvalidArgument) strings that are too long for execve, one by one or together."""
    sizes = [len(text.encode()) for text in strings]
    for text, size in zip(strings, sizes, strict=True):
        if size > _ONE:
            raise InvalidArgument(f"{field}: {text[:64]!r}... has {size} bytes, more than {_ONE}")
    if sum(sizes) > _ALL:
        raise InvalidArgument(f"{field}: {sum(sizes)} bytes, more than {_ALL}")
