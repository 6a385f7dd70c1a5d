"""Changes inputs: bytes anywhere, and values of JSON where the input is JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

LARGEST = 256 << 10  # bytes of an input

PIECES: tuple[bytes, ...] = (
    b"\0",
    b"\xff",
    b"\n",
    b"\r\n\r\n",
    b"{",
    b"}",
    b'"',
    b"\\",
    b"\\ud800",
    b"\xed\xa0\x80",
    b"\xc3\xa9",
    b"/",
    b"..",
    b"://",
    b":",
    b"@",
    b"=",
    b"*",
    b"-1",
    b"0",
    b"1e999",
    b"18446744073709551616",
    b"9" * 5000,
    b"null",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80",
    b"\x80" * 4000,
    b"[" * 2000,
    b'{"a":' * 1200,
    b"a=" + b"[" * 1500,
    b"- " * 1200,
    b"x" * 70_000,
)
_VALUES: tuple[object, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    10**400,
    0.5,
    1e308,
    "",
    "\0",
    "a",
    "\ud800",
    "é",
    "../..",
    "/",
    "x" * 5000,
    [],
    {},
    [None],
    {"": None},
    [[[[]]]],
    {"a": {"a": {"a": {}}}},
    [0] * 3000,
)


def mutate(data: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    """Return the data with one to four changes; `others` are inputs to take pieces of."""
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        if dice.randrange(3) == 0 and (changed := _other_value(data, dice)) is not None:
            data = changed
        else:
            data = _other_bytes(data, others, dice)
    return data[:LARGEST]


def _other_bytes(data: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    place = dice.randrange(len(data) + 1)
    end = min(len(data), place + dice.choice((1, 1, 2, 4, 8, 64, 512)))
    match dice.randrange(9):
        case 0:
            return data[:place] + dice.randbytes(end - place) + data[end:]
        case 1:
            return (
                data[:place]
                + bytes(byte ^ 1 << dice.randrange(8) for byte in data[place : place + 1])
                + data[place + 1 :]
            )
        case 2:
            return data[:place] + dice.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"\1")) * (end - place) + data[end:]
        case 3:
            return data[:place] + data[end:]
        case 4:
            return data[:place] + data[place:end] * dice.choice((2, 3, 100)) + data[end:]
        case 5:
            return data[:place] + dice.choice(PIECES) + data[place:]
        case 6:
            return data[:place] + dice.choice(PIECES) + data[end:]
        case 7:
            other = dice.choice(others)
            return data[:place] + other[dice.randrange(len(other) + 1) :]
    return data[:place]


def _other_value(data: bytes, dice: random.Random) -> bytes | None:
    """Replace, remove or repeat a member somewhere; None if the data is not JSON."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    place = document
    while isinstance(place, dict | list) and place:
        key = dice.choice(list(place)) if isinstance(place, dict) else dice.randrange(len(place))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or dice.randrange(4) == 0:
            choice = dice.randrange(6)
            if choice == 0:
                del place[key]
            elif choice == 1 and isinstance(place, list):
                place.append(inner)
            elif choice == 2 and isinstance(place, dict):
                place[dice.choice(("", "a", key.upper(), key + "x"))] = inner
            else:
                place[key] = dice.choice(_VALUES)
            break
        place = inner
    try:
        return json.dumps(document, ensure_ascii=dice.randrange(2) == 0).encode(errors="surrogatepass")
    except (ValueError, RecursionError):
        return None
