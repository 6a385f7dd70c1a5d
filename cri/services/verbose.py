"""The `info` map of verbose answers: one member, "info", whose value is a JSON document, as crictl shows it."""

from __future__ import annotations

from typing import Any

import msgspec

from pods.octets import all_shown


def info(document: Any) -> dict[str, str]:
    """The map for `document`, which may hold anything msgspec can encode; other objects are shown as text."""
    try:
        encoded = msgspec.json.encode(document, enc_hook=str)
    except UnicodeEncodeError:  # a value of the environment that is no text
        encoded = msgspec.json.encode(all_shown(msgspec.to_builtins(document, enc_hook=str)))
    return {"info": encoded.decode()}
