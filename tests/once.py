"""Directories outside the checkout that hold what tests make once a machine: disks, images, roots."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

CACHE: Final = Path(os.environ.get("CRISP_TEST_CACHE", "/var/cache/crisp-tests"))
_KEPT_SECONDS: Final = 14 * 24 * 3600


def made(kind: str, recipe: object, make: Callable[[Path], None]) -> Path:
    """The directory of that kind and recipe; `make` fills an empty one where it is missing.

    One process at a time makes one of a kind. Directories that nobody asked for in two weeks are removed.
    """
    home = CACHE / f"{kind}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{kind}.lock").open("w") as lock, ExitStack() as undo:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.exists():
            new = Path(tempfile.mkdtemp(prefix="new-", dir=CACHE))
            undo.callback(shutil.rmtree, new)
            make(new)
            new.rename(home)
            undo.pop_all()
        os.utime(home)
        _forget_old()
    return home


def _forget_old() -> None:
    for home in CACHE.iterdir():
        if home.is_dir() and time.time() - home.stat().st_mtime > _KEPT_SECONDS:
            shutil.rmtree(home)
