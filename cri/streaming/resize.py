"""Parses terminal sizes from clients: a sequence of JSON values, split anywhere."""

from __future__ import annotations

import json
from typing import Final

_MOST_BYTES: Final = 1 << 10  # of an incomplete value
_MOST: Final = 0xFFFF
_decoder = json.JSONDecoder()


class Sizes:
    """Collects the data and parses it."""

    def __init__(self) -> None:
        self._text = ""
        self._broken = False

    def feed(self, data: memoryview) -> tuple[int, int] | None:
        """Return width and height of the last complete size in the data so far. After invalid JSON always None."""
        if self._broken:
            return None
        text = self._text + bytes(data).decode("latin-1")
        size = None
        while text := text.lstrip():
            try:
                value, end = _decoder.raw_decode(text)
            except (json.JSONDecodeError, RecursionError):
                self._broken = len(text) > _MOST_BYTES or not text.startswith("{")
                break
            text = text[end:]
            size = _size(value) or size
        self._text = text
        return size


def _size(value: object) -> tuple[int, int] | None:
    if not isinstance(value, dict):
        return None
    members = {str(key).lower(): number for key, number in value.items()}
    width, height = members.get("width"), members.get("height")
    if isinstance(width, int) and isinstance(height, int) and 0 < width <= _MOST and 0 < height <= _MOST:
        return int(width), int(height)
    return None
