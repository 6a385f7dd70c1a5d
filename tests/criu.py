"""A criu that knows this machine's kernel (tests/criu.sh)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SCRIPT = Path(__file__).with_name("criu.sh")


@contextmanager
def on_path() -> Iterator[None]:
    """A crispd that is started meanwhile finds it."""
    done = subprocess.run([_SCRIPT], check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{done.stdout.strip()}:{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before
