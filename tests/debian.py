"""Roots of Debian's packages, made by mmdebstrap."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

SUITE: Final = "bookworm"


def make_root(target: Path, packages: Sequence[str], variant: str, *options: str) -> None:
    """Make a root of these packages: a tar if `target` ends in .tar, else a directory. Takes root and a mirror.

    Variant "minbase" is a system; "extract" is files that no package's script has seen.
    """
    command = ["mmdebstrap", "--quiet", "--mode=root", f"--variant={variant}", f"--include={','.join(packages)}"]
    subprocess.run([*command, *options, SUITE, target, *sources(SUITE)], check=True, stdin=subprocess.DEVNULL)


def sources(suite: str) -> list[Path]:
    """The machine's own list of mirrors where it is of that suite; else none, which means Debian's."""
    if platform.freedesktop_os_release().get("VERSION_CODENAME") != suite:
        return []
    files = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
    return [file for file in files if file.is_file() and file.stat().st_size][:1]
