"""Tells which volume hides a program, or a script's interpreter, that was not found."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pods.clues.files import has_file
from pods.model import Mount

_QUOTED: Final = re.compile(r'"([^"]+)"')  # in the error: the program, and what it needs
_MOST: Final = 256  # places to look at: PATH has as many as its author likes


def hidden(error: str, mounts: Sequence[Mount], process: dict[str, Any], layers: Sequence[Path]) -> str:
    """Return what to add to an ExecFailed: the image has this file where a volume is mounted. "" if it has not.

    `layers`: the topmost first. Raises OSError.
    """
    targets = [os.path.normpath(one.container_path) for one in mounts]
    for path in _sought(error, process)[:_MOST]:
        for target in targets:
            if f"{path}/".startswith(f"{target}/") and has_file(layers, path):
                return f": the volume on `{target}` hides the image's `{path}`"
    return ""


def _sought(error: str, process: dict[str, Any]) -> list[str]:
    """Return the paths at which it may have been looked for."""
    path = next((one[5:] for one in reversed(process.get("env", [])) if one.startswith("PATH=")), "")
    found: list[str] = []
    for name in _QUOTED.findall(error):
        places = [process.get("cwd", "/")] if "/" in name else path.split(":")
        found += [os.path.normpath(os.path.join(place or "/", name)) for place in places]
    return found
