"""Bytes that are no text, as Kubernetes lets values of environment variables be.

They are kept in strings as Python keeps such names of files (PEP 383): each byte that is not UTF-8 is a lone surrogate,
U+DC80 to U+DCFF, which no text has. JSON writes those as escapes ("\\udcff"), so config.json and records stay ASCII,
and the kernel is given the bytes again. Other readers of JSON see U+FFFD there.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec

_T = TypeVar("_T", bound=msgspec.Struct)


def text_of(octets: bytes) -> str:
    """The string that stands for the bytes."""
    return octets.decode(errors="surrogateescape")


def octets_of(text: str) -> bytes:
    """The bytes that a string stands for."""
    return text.encode(errors="surrogateescape")


def shown(text: str) -> str:
    """A string to look at: bytes that are not UTF-8 are written as "\\xff"."""
    return text if text.isascii() else octets_of(text).decode(errors="backslashreplace")


def all_shown(document: Any) -> Any:
    """A JSON document with all of its strings so."""
    if isinstance(document, str):
        return shown(document)
    if isinstance(document, dict):
        return {name: all_shown(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [all_shown(value) for value in document]
    return document


def encode(record: msgspec.Struct) -> str:
    """A record as JSON. msgspec, which is many times faster, takes text only."""
    try:
        return msgspec.json.encode(record).decode()
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(record))


def decode(body: str, type: type[_T]) -> _T:
    """The record that `encode` wrote. Raises msgspec.DecodeError."""
    try:
        return msgspec.json.decode(body, type=type)
    except msgspec.DecodeError as error:
        if "surrogate" not in str(error):
            raise
    return msgspec.convert(json.loads(body), type)
