"""Implements `json.loads` and `json.dumps` on the interpreter's C scanner and encoder: `json` itself imports `re`."""

# Type checkers see `json` (see runtime.light).
# mypy: ignore-errors

from __future__ import annotations

try:
    from _json import encode_basestring_ascii, make_encoder, make_scanner
except ImportError:
    make_scanner = None

_NUMBERS = {"-Infinity": float("-inf"), "Infinity": float("inf"), "NaN": float("nan")}


class _Scanning:
    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = _NUMBERS.__getitem__
    memo: dict = {}  # noqa: RUF012


def loads(text):
    """Parse like json.loads, which raises the errors, with positions. Too deep nesting is a ValueError."""
    if make_scanner is not None:
        try:
            stripped = (text.decode() if isinstance(text, bytes) else text).strip(" \t\n\r")
            value, end = make_scanner(_Scanning)(stripped, 0)
            if end == len(stripped):
                return value
        except (StopIteration, ValueError):
            pass
        except RecursionError:
            raise ValueError("nested too deep") from None
    import json

    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def load(file):
    return loads(file.read())


def dumps(value, *, separators=(", ", ": "), **options):
    """Serialise like json.dumps. With other options, json.dumps itself does it."""
    if make_scanner is not None and not options:
        try:
            encode = make_encoder(None, _refuse, encode_basestring_ascii, None, *separators[::-1], False, False, True)
            return "".join(encode(value, 0))
        except TypeError:
            pass
    import json

    return json.dumps(value, separators=separators, **options)


def _refuse(value):
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
