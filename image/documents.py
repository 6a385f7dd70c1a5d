"""JSON that others wrote, read as Go's programs read it, since those are what it was tried with.

A null is a member that is not there; as an element of a list or map it is the type's empty value. Text that is no UTF-8
has U+FFFD where it is not.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

_T = TypeVar("_T")

_EMPTY: tuple[tuple[type[inspect.Type], Any], ...] = (
    (inspect.StrType, ""),
    (inspect.IntType, 0),
    (inspect.BoolType, False),
    (inspect.DictType, {}),
    (inspect.StructType, {}),
    (inspect.ListType, ()),
    (inspect.VarTupleType, ()),
)


class Malformed(ValueError):
    """The text is no JSON, or not of the form that was asked for."""


def decode(raw: bytes, kind: type[_T]) -> _T:
    """Parse `raw` as a `kind`, a structure of msgspec's or Any. Raises Malformed."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except RecursionError:
        raise Malformed("nested too deep") from None
    except ValueError as error:  # msgspec's own are, too
        strict = str(error)
    try:
        found = json.loads(raw.decode(errors="replace"), parse_constant=_refuse_constant)
        return convert(found, kind)
    except Malformed:
        raise
    except RecursionError:
        raise Malformed("nested too deep") from None
    except ValueError:
        raise Malformed(strict) from None


def convert(value: object, kind: type[_T]) -> _T:
    """Take what was parsed already (YAML has nulls, too) as a `kind`. Raises Malformed."""
    try:
        return msgspec.convert(_cleaned(value, inspect.type_info(kind)), kind)
    except msgspec.ValidationError as error:
        raise Malformed(str(error)) from None


def _cleaned(value: Any, kind: inspect.Type) -> Any:
    """`value` without nulls and halves of surrogate pairs, wherever `kind` knows what may stand there."""
    if isinstance(kind, inspect.UnionType):
        if value is None and kind.includes_none:
            return None
        kind = next(one for one in kind.types if not isinstance(one, inspect.NoneType))
    if value is None:
        return next((empty for type_, empty in _EMPTY if isinstance(kind, type_)), None)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        return _cleaned_mapping(value, kind)
    if isinstance(value, list):
        element = kind.item_type if isinstance(kind, inspect.ListType | inspect.VarTupleType) else _ANY
        return [_cleaned(one, element) for one in value]
    return value


def _cleaned_mapping(value: dict[Any, Any], kind: inspect.Type) -> dict[Any, Any]:
    if isinstance(kind, inspect.StructType):
        known = {field.encode_name: field.type for field in kind.fields}
        return {key: _cleaned(one, known.get(key, _ANY)) for key, one in value.items() if one is not None}
    element = kind.value_type if isinstance(kind, inspect.DictType) else _ANY
    return {_text(key) if isinstance(key, str) else key: _cleaned(one, element) for key, one in value.items()}


_ANY = inspect.AnyType()


def _text(text: str) -> str:
    """JSON can write half of a surrogate pair (as "\\ud800"), which is no character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if not text.isascii() else text


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
