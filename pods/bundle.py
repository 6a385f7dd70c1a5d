"""A container's bundle: the directory with its config.json, in the state directory; a reboot takes it away."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

_CONFIG: Final = "config.json"


def write_config(bundle: Path, document: dict[str, Any]) -> None:
    """Write config.json, or replace it at once. Raises OSError."""
    new = bundle / f"{_CONFIG}.new"
    new.write_text(json.dumps(document))
    os.rename(new, bundle / _CONFIG)


def read_config(bundle: Path) -> dict[str, Any] | None:
    """What config.json says; None where there is none any more, or none that can be read."""
    try:
        document = json.loads((bundle / _CONFIG).read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None
