"""A container's bundle: config.json and its compiled seccomp filter, in the state directory; a reboot takes it away."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any, Final

_CONFIG: Final = "config.json"
_FILTER: Final = "seccomp-filter"
_FLAGS: Final = struct.Struct("<Q")


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


def write_filter(bundle: Path, program: bytes, flags: int) -> None:
    """Keep the BPF program that config.json's seccomp profile is, none for no profile. Raises OSError."""
    (bundle / _FILTER).write_bytes(_FLAGS.pack(flags) + program)


def read_filter(bundle: Path) -> tuple[bytes, int] | None:
    """Program and flags of seccomp(2); None in a bundle of an older crisp, which had no such file. Raises OSError."""
    try:
        content = (bundle / _FILTER).read_bytes()
    except FileNotFoundError:
        return None
    return content[_FLAGS.size :], _FLAGS.unpack_from(content)[0]
