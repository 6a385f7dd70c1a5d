"""Parses JSON written by others as leniently as Go's programs, with which it was tested.

A null counts as a missing member; as an element of a list or map it is the type's empty value. Invalid UTF-8 and single
surrogates become U+FFFD.
"""

from __future__ import annotations

import json
import math
import re
from functools import cache
from types import NoneType, UnionType
from typing import Any, Final, TypeVar, Union, get_args, get_origin

import msgspec

_T = TypeVar("_T")

_NULL: Final = b"null"
_EMPTY: Final[dict[Any, Any]] = {str: "", int: 0, bool: False}
_STRUCTURES: Final = 20_000  # with nulls or unknown members, in one document: manifests have hundreds
_DIGITS: Final = 400  # longer numbers mean nothing, and parsing them takes quadratic time
# JSON can encode a single surrogate, which is no character. After an odd number of backslashes `\u` is plain text.
_SURROGATES: Final = re.compile(
    rb"(?<!\\)((?:\\\\)*)(?:(\\u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2})|\\u[dD][89a-fA-F][\da-fA-F]{2})"
)


class Malformed(ValueError):
    """The text is not JSON, or does not have the requested form."""


def decode(raw: bytes, kind: type[_T]) -> _T:
    """Parse `raw` as a `kind`, a msgspec structure or Any. Raises Malformed.

    Members that `kind` does not have are skipped without creating values: their number is unbounded.
    """
    try:
        return _as(raw, kind)
    except RecursionError:
        raise Malformed("nested too deep") from None
    except ValueError:  # includes msgspec's errors
        pass
    try:
        text = _text(raw)
        _as(text, msgspec.Raw)  # fails unless it is JSON
        if kind is dict:  # any object; numbers beyond a float's range become null
            found: _T = _as_object(text)
            return found
        return _as(_Mending().value(text, kind), kind)
    except RecursionError:
        raise Malformed("nested too deep") from None
    except ValueError as error:
        raise Malformed(str(error)) from None


def convert(value: object, kind: type[_T]) -> _T:
    """Convert parsed data (YAML has nulls, too) to a `kind`. Raises Malformed."""
    try:
        raw = msgspec.json.encode(value)
    except RecursionError:
        raise Malformed("nested too deep") from None
    except (TypeError, ValueError) as error:
        raise Malformed(str(error)) from None
    return decode(raw, kind)


def _as_object(text: bytes) -> Any:
    found = json.loads(text, parse_float=_finite, parse_int=_whole)
    if not isinstance(found, dict):
        raise Malformed("expected an object")
    return found


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _whole(text: str) -> int | None:
    return int(text) if len(text) < _DIGITS else None


class _Mending:
    """Rewrites JSON that msgspec rejects so that it accepts it, visiting only the parts that need it.

    Stops at the first value that cannot be fixed, and after _STRUCTURES; the document is then rejected.
    """

    def __init__(self) -> None:
        self._left = _STRUCTURES

    def value(self, raw: bytes, kind: Any) -> bytes:
        """Return `raw` with nulls replaced, and without members that `kind` does not have."""
        optional = get_origin(kind) in (UnionType, Union)
        if optional:
            kind = next(one for one in get_args(kind) if one is not NoneType)
        if raw == _NULL:
            return raw if optional else _empty(kind)
        if self._left <= 0 or kind in _EMPTY or _is_taken(raw, kind):
            return raw
        mended = self._mended(raw, kind)
        if not _is_taken(mended, kind):
            self._left = 0
        return mended

    def _mended(self, raw: bytes, kind: Any) -> bytes:
        origin, arguments = get_origin(kind), get_args(kind)
        if raw.startswith(b"{") and (known := _members(kind)) is not None:
            self._left -= 1
            given = {key: part for key, part in _parts(raw).items() if key in known and part != _NULL}
            return _object({key: self.value(part, known[key]) for key, part in given.items()})
        if raw.startswith(b"{") and origin is dict:
            element = arguments[1]
            if element in _EMPTY:
                named = _as(raw, dict[str, element | None])  # type: ignore[valid-type]
                return msgspec.json.encode({k: _EMPTY[element] if v is None else v for k, v in named.items()})
            return _object({key: self.value(part, element) for key, part in _parts(raw).items()})
        if raw.startswith(b"[") and origin in (tuple, list):
            element = arguments[0]
            if element in _EMPTY:
                listed = _as(raw, list[element | None])  # type: ignore[valid-type]
                return msgspec.json.encode([_EMPTY[element] if one is None else one for one in listed])
            elements = _as(raw, list[msgspec.Raw])
            if len(elements) <= _STRUCTURES:
                return b"[%b]" % b",".join([self.value(bytes(part), element) for part in elements])
        return raw


def _as(raw: bytes, kind: type[_T]) -> _T:
    decoded: _T = _decoder(kind).decode(raw)  # type: ignore[arg-type]  # any type can be hashed
    return decoded


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


@cache
def _members(kind: Any) -> dict[str, Any] | None:
    """Return the members of a structure by their JSON names; None for another type."""
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return None
    return {field.encode_name: field.type for field in msgspec.structs.fields(kind)}


def _is_taken(raw: bytes, kind: Any) -> bool:
    try:
        _as(raw, kind)
    except ValueError:
        return False
    return True


def _parts(raw: bytes) -> dict[str, bytes]:
    return {key: bytes(part) for key, part in _as(raw, dict[str, msgspec.Raw]).items()}


def _object(members: dict[str, bytes]) -> bytes:
    return b"{%b}" % b",".join([b"%b:%b" % (msgspec.json.encode(key), part) for key, part in members.items()])


def _empty(kind: Any) -> bytes:
    if get_origin(kind) is dict or _members(kind) is not None:
        return b"{}"
    return b"[]" if get_origin(kind) in (tuple, list) else msgspec.json.encode(_EMPTY.get(kind))


def _text(raw: bytes) -> bytes:
    """Return `raw` with invalid characters replaced."""
    whole = raw.decode(errors="replace").encode()
    if rb"\ud" in whole.lower():
        whole = _SURROGATES.sub(lambda found: found[1] + (found[2] or rb"\ufffd"), whole)
    return whole.strip()
