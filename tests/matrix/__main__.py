"""`python -m tests.matrix` writes docs/oci.md and docs/cri.md; `--missing` lists rows without a test instead."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from tests.matrix import cri, oci
from tests.matrix.table import untested

ROOT = Path(__file__).parents[2]


def files() -> Mapping[str, str]:
    """The text of each page, by its path in the project."""
    return {"docs/oci.md": oci.text(), "docs/cri.md": cri.text()}


def stale() -> list[str]:
    return [name for name, text in files().items() if not (ROOT / name).exists() or (ROOT / name).read_text() != text]


def main() -> int:
    """Write, or list; returns the exit status."""
    if "--missing" in sys.argv[1:]:
        missing = untested([*oci.sections(), *cri.sections()])
        print(*missing, sep="\n")
        return 1 if missing else 0
    for name, text in files().items():
        (ROOT / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
