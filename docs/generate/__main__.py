"""`python -m docs.generate` writes every generated file; `--check` only names those that are stale."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from docs.generate import configuration, figures, man, markdown, pictures
from docs.generate.commands import crisp, crisp_oci, crispd

ROOT = Path(__file__).parents[2]


def files() -> Mapping[str, str]:
    """The text of each generated file, by its path in the project."""
    return {
        "deploy/crisp.toml": configuration.sample(),
        "docs/reference/crisp.toml.md": configuration.page(),
        "docs/reference/crispd.md": markdown.page(crispd()),
        "docs/reference/crisp.md": markdown.page(crisp()),
        "docs/reference/crisp-oci.md": markdown.page(crisp_oci()),
        "README.md": figures.filled(ROOT, "README.md"),
        "docs/scale.md": figures.filled(ROOT, "docs/scale.md"),
        "docs/pictures.md": pictures.page(ROOT),
        "docs/man/crispd.8": man.page(crispd()),
        "docs/man/crisp.1": man.page(crisp()),
        "docs/man/crisp-oci.8": man.page(crisp_oci()),
        "docs/man/crisp.toml.5": man.configuration_page(),
    }


def stale() -> list[str]:
    """The files that are missing or not what the source says."""
    return [
        name for name, text in files().items() if not (ROOT / name).exists() or (ROOT / name).read_text() != text
    ]


def main() -> int:
    """Write, or check; returns the exit status."""
    wrong = stale()
    check = "--check" in sys.argv[1:]
    for name in wrong:
        print(f"{name}: stale" if check else f"wrote {name}")
        if not check:
            (ROOT / name).parent.mkdir(exist_ok=True)
            (ROOT / name).write_text(files()[name])
    return 1 if check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
