"""Tells what SELinux denied to a container, where a mode does not explain that it was denied something."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pods.clues import denials, files


def denied(words: str, document: dict[str, Any], root: Sequence[Path], since: float) -> str:
    """Return what a log tells, or else the label that does not fit; "" without one, or if the container has no label.

    `document` is config.json. `root`: the container's layers, the topmost first. `since` is a time of the epoch.
    """
    label = document.get("process", {}).get("selinuxLabel", "")
    if not label:
        return ""
    if told := denials.last(label, since, words):
        return told
    found = files.foreign(words, document, root)
    return f"{denials.DENIED} it, as it seems: {found}" if found else ""
