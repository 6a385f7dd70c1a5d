"""The machine's cgroup hierarchies, and a tree of one's own in all of them."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
GRACE_SECONDS = 10.0  # for processes that are dying
_REAL_TIME = "10000"  # microseconds in a second: a new group of version 1 has none to give to those below it


def hierarchies() -> list[Path]:
    """Where each is mounted: one place on version 2, many on version 1."""
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [path for path in ROOT.iterdir() if path.is_dir() and not path.is_symlink()]


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Freeze the cgroup of a process, of either version; it may be removed meanwhile."""
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    places = {kinds: path for _, kinds, path in lines}
    if "freezer" in places:
        file, on, off = ROOT / f"freezer{places['freezer']}/freezer.state", "FROZEN", "THAWED"
    else:
        file, on, off = Path(f"{ROOT}{places['']}/cgroup.freeze"), "1", "0"
    file.write_text(on)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            file.write_text(off)


@contextmanager
def tree(name: str) -> Iterator[list[Path]]:
    """An empty cgroup below the root of every hierarchy, which can hold processes; removed with all below it."""
    made: list[Path] = []
    with ExitStack() as locks:
        try:
            for path in (directory / name for directory in hierarchies()):
                path.mkdir()
                made.append(path)
                locks.enter_context(_locked(path))
                _hand_down(path)
            yield made
        finally:
            for path in made:
                remove(path)


def remove(top: Path) -> None:
    """Remove a tree of cgroups, waiting for processes that are dying. Raises OSError for one that is in use."""
    deadline = time.monotonic() + GRACE_SECONDS
    for directory, _, _ in os.walk(top, topdown=False):
        while Path(directory).exists():
            try:
                os.rmdir(directory)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


def sweep(prefix: str) -> None:
    """Remove empty trees named `prefix`, the number of a process and that of its PID namespace, where it is no more.

    It may also be one of another PID namespace, which holds a lock.
    """
    for directory in hierarchies():
        for path in directory.glob(f"{prefix}*"):
            number = re.fullmatch(r"([0-9]+)(?:-[0-9]+)?", path.name.removeprefix(prefix))
            if number and not Path("/proc", number[1]).exists():
                with suppress(OSError), _locked(path):
                    for below, _, _ in os.walk(path, topdown=False):
                        with suppress(OSError):
                            os.rmdir(below)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a directory's lock. Raises BlockingIOError when somebody else does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _hand_down(path: Path) -> None:
    """What a new cgroup lacks: cpus, memory nodes and real-time on version 1; on version 2 the controllers."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (path / name).exists() and (path / "cpuset.cpu_exclusive").exists():
            (path / name).write_text((path.parent / name).read_text())
    with suppress(OSError):
        if (path / "cpu.rt_runtime_us").exists():
            (path / "cpu.rt_runtime_us").write_text(_REAL_TIME)
    controllers = path.parent / "cgroup.controllers"
    for controller in controllers.read_text().split() if controllers.exists() else ():
        with suppress(OSError):
            (path.parent / "cgroup.subtree_control").write_text(f"+{controller}")
