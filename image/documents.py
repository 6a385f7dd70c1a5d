"""JSON that others wrote, read as Go's programs read it, since those are what it was tried with.

A null is a member that is not there; as an element of a list or map it is the type's empty value. Bytes that are no
UTF-8, and half of a surrogate pair, are U+FFFD.
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
_STRUCTURES: Final = 20_000  # with nulls or unknown members, of one document: manifests have hundreds
_DIGITS: Final = 400  # more are no number that anybody meant, and cost their square to read
# JSON can write half of a surrogate pair, which is no character. After an odd number of backslashes `\u` is only text.
_SURROGATES: Final = re.compile(
    rb"(?<!\\)((?:\\\\)*)(?:(\\u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2})|\\u[dD][89a-fA-F][\da-fA-F]{2})"
)


class Malformed(ValueError):
    """The text is no JSON, or not of the form that was asked for."""


def decode(raw: bytes, kind: type[_T]) -> _T:
    """Parse `raw` as a `kind`, a structure of msgspec's or Any. Raises Malformed.

    Members that `kind` does not have are skipped and never made values of: nobody bounds how many there are.
    """
    try:
        return _as(raw, kind)
    except RecursionError:
        raise Malformed("nested too deep") from None
    except ValueError:  # msgspec's own are, too
        pass
    try:
        text = _text(raw)
        _as(text, msgspec.Raw)  # it is JSON, or nobody looks further
        if kind is dict:  # whatever there is, with numbers that no float holds
            found: _T = _as_object(text)
            return found
        return _as(_Mending().value(text, kind), kind)
    except RecursionError:
        raise Malformed("nested too deep") from None
    except ValueError as error:
        raise Malformed(str(error)) from None


def convert(value: object, kind: type[_T]) -> _T:
    """Take what was parsed already (YAML has nulls, too) as a `kind`. Raises Malformed."""
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
    """Makes JSON that msgspec takes of JSON that it does not take, looking only into what it has to.

    Ends at the first value in which nothing helps, and after _STRUCTURES: what is left has the document refused.
    """

    def __init__(self) -> None:
        self._left = _STRUCTURES

    def value(self, raw: bytes, kind: Any) -> bytes:
        """`raw` with other nulls, and without members that `kind` does not have."""
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
    """The members of a structure by their names in JSON; None for what is no structure."""
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
    """`raw` with characters only."""
    whole = raw.decode(errors="replace").encode()
    if rb"\ud" in whole.lower():
        whole = _SURROGATES.sub(lambda found: found[1] + (found[2] or rb"\ufffd"), whole)
    return whole.strip()
