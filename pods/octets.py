"""Represents bytes that are not UTF-8 in strings: Kubernetes allows them in values of environment variables.

They use Python's encoding for file names (PEP 383): each byte that is not UTF-8 becomes a lone surrogate, U+DC80 to
U+DCFF, which no valid text contains. JSON writes those as escapes ("\\udcff"), so config.json and records stay ASCII,
and the kernel gets the original bytes. Other readers of JSON see U+FFFD there.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec

_T = TypeVar("_T", bound=msgspec.Struct)


def text_of(octets: bytes) -> str:
    """Decode bytes into the string that represents them."""
    return octets.decode(errors="surrogateescape")


def octets_of(text: str) -> bytes:
    """Encode a string into the bytes that it represents."""
    return text.encode(errors="surrogateescape")


def shown(text: str) -> str:
    """Make a string printable: bytes that are not UTF-8 become "\\xff"."""
    return text if text.isascii() else octets_of(text).decode(errors="backslashreplace")


def all_shown(document: Any) -> Any:
    """Apply `shown` to every string of a JSON document."""
    if isinstance(document, str):
        return shown(document)
    if isinstance(document, dict):
        return {name: all_shown(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [all_shown(value) for value in document]
    return document


def encode(record: msgspec.Struct) -> str:
    """Encode a record as JSON: with msgspec, which is many times faster but accepts valid text only, or else json."""
    try:
        return msgspec.json.encode(record).decode()
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(record))


def decode(body: str, type: type[_T]) -> _T:
    """Decode a record that `encode` wrote. Raises msgspec.DecodeError."""
    try:
        return msgspec.json.decode(body, type=type)
    except msgspec.DecodeError as error:
        if "surrogate" not in str(error):
            raise
    return msgspec.convert(json.loads(body), type)
