"""The `info` map of verbose answers: one member, "info", whose value is a JSON document, as crictl shows it."""

from __future__ import annotations

from typing import Any

import msgspec


def info(document: Any) -> dict[str, str]:
    """The map for `document`, which may hold anything msgspec can encode; other objects are shown as text."""
    return {"info": msgspec.json.encode(document, enc_hook=str).decode()}
