"""Where a fresh interpreter without site-packages (`python -I -S`) finds what it is to load."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

_PACKAGES = str(Path(__file__).resolve().parents[1])


def search_path(libraries: Iterable[str]) -> list[str]:
    """Return the directories of crisp's packages and of these libraries; missing ones are left out."""
    roots = [_PACKAGES]
    for library in libraries:
        spec = find_spec(library)
        if spec is not None and spec.origin is not None:
            roots.append(str(Path(spec.origin).parent.parent))
    return list(dict.fromkeys(roots))
