"""Tells which volume hides a program, or a script's interpreter, that was not found."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from linux.syscalls import open_in_root
from pods.model import Mount

_QUOTED: Final = re.compile(r'"([^"]+)"')  # in the error: the program, and what it needs
_MOST: Final = 256  # places to look at: PATH has as many as its author likes
_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def hidden(error: str, mounts: Sequence[Mount], process: dict[str, Any], layers: Sequence[Path]) -> str:
    """Return what to add to an ExecFailed: the image has this file where a volume is mounted. "" if it has not.

    No link of the image leads the search out of its layer.
    """
    targets = [os.path.normpath(one.container_path) for one in mounts]
    with ExitStack() as undo:
        roots = []
        for layer in layers:
            roots.append(os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            undo.callback(os.close, roots[-1])
        for path in _sought(error, process)[:_MOST]:
            for target in targets:
                if f"{path}/".startswith(f"{target}/") and any(_has(root, path) for root in roots):
                    return f": the volume on `{target}` hides the image's `{path}`"
    return ""


def _has(root: int, path: str) -> bool:
    try:
        os.close(open_in_root(root, path, _LOOK))
    except OSError:
        return False
    return True


def _sought(error: str, process: dict[str, Any]) -> list[str]:
    """Return the paths at which it may have been looked for."""
    path = next((one[5:] for one in reversed(process.get("env", [])) if one.startswith("PATH=")), "")
    found: list[str] = []
    for name in _QUOTED.findall(error):
        places = [process.get("cwd", "/")] if "/" in name else path.split(":")
        found += [os.path.normpath(os.path.join(place or "/", name)) for place in places]
    return found
