"""gVisor's runsc (tests/e2e/build-runsc.sh), and what crispd needs to be told of it on a machine like the tests'."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.daemon import Daemon

HANDLER = "gvisor"
_SCRIPT = Path(__file__).with_name("e2e") / "build-runsc.sh"


@cache
def runsc() -> Path:
    """The program; built now if it is missing, which takes minutes and a network."""
    done = subprocess.run([_SCRIPT], check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    return Path(done.stdout.strip(), "runsc")


def settings() -> str:
    """The handler in crisp.toml."""
    return f'[runtime_handlers.{HANDLER}]\nkind = "gvisor"\npath = "{runsc()}"\noptions = ["--allow-suid"]\n'


@contextmanager
def running(directory: Path) -> Iterator[Daemon]:
    """A daemon with the handler, the image of busybox, and a bridge, which stays as long as it does."""
    file = directory / "crisp.toml"
    file.write_text(settings())
    with Daemon.running(f"--config={file}") as daemon:
        daemon.import_busybox()
        with daemon.pod("first"):
            pass
        yield daemon
