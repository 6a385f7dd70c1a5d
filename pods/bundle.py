"""Reads and writes a container's bundle: config.json and its compiled seccomp filter.

The bundle is in the state directory, which does not survive a reboot.
"""

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
    """Write config.json, replacing an old one atomically. Raises OSError."""
    path = f"{bundle}/{_CONFIG}"
    new = f"{path}.new"
    with open(new, "w") as file:
        file.write(json.dumps(document))
    os.rename(new, path)


def read_config(bundle: Path) -> dict[str, Any] | None:
    """Read config.json. Returns None if it is missing or unreadable."""
    try:
        document = json.loads((bundle / _CONFIG).read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def write_filter(bundle: Path, program: bytes, flags: int) -> None:
    """Save the BPF program compiled from config.json's seccomp profile; empty without a profile. Raises OSError."""
    with open(f"{bundle}/{_FILTER}", "wb", buffering=0) as file:
        file.write(_FLAGS.pack(flags) + program)


def read_filter(bundle: Path) -> tuple[bytes, int] | None:
    """Read the program and flags for seccomp(2). Returns None for a bundle of an older crisp, which has no such file.

    Raises OSError.
    """
    try:
        content = (bundle / _FILTER).read_bytes()
    except FileNotFoundError:
        return None
    return content[_FLAGS.size :], _FLAGS.unpack_from(content)[0]
