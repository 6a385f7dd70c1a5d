"""What a node under test takes of the machine: kubelet's fixed directories, an address and a cgroup."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
# kubelet has these paths built in, or other programs look for its files there.
KUBELETS_DIRECTORIES = tuple(map(Path, ("/var/lib/kubelet", "/var/log/containers", "/var/log/pods")))
GRACE_SECONDS = 5.0


@contextmanager
def covered_directories(store: Path) -> Iterator[None]:
    """Directories below `store` in the place of kubelet's own, in this mount namespace: for use in a box."""
    with ExitStack() as undo:
        for target in KUBELETS_DIRECTORIES:
            source = store / target.name
            source.mkdir()
            if not target.exists():
                target.mkdir(parents=True)
                undo.callback(target.rmdir)
            subprocess.run(["mount", "--bind", source, target], check=True)
            undo.callback(subprocess.run, ["umount", "--recursive", target], check=True)
            # Its mounts must be seen in containers, and theirs (Bidirectional) by it.
            subprocess.run(["mount", "--make-shared", target], check=True)
        yield


@contextmanager
def address(ip: str) -> Iterator[str]:
    """An address of the node: 127.0.0.1 is none to kubelet. For use in a box, whose only link is lo."""
    subprocess.run(["ip", "address", "add", f"{ip}/32", "dev", "lo"], check=True)
    try:
        yield ip
    finally:
        subprocess.run(["ip", "address", "delete", f"{ip}/32", "dev", "lo"], check=True)


@contextmanager
def cgroup(name: str) -> Iterator[str]:
    """An empty cgroup below the root in every hierarchy, for `cgroupRoot`; removed afterwards with what it holds."""
    made = [directory / name for directory in _hierarchies()]
    try:
        for path in made:
            path.mkdir()
            _inherit_cpuset(path)
        yield f"/{name}"
    finally:
        for path in made:
            _remove(path)


def _hierarchies() -> list[Path]:
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]


def _inherit_cpuset(path: Path) -> None:
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (path / name).exists() and (path.parent / "cpuset.cpu_exclusive").exists():
            (path / name).write_text((path.parent / name).read_text())


def _remove(path: Path) -> None:
    """Remove a tree of cgroups, waiting a little for processes that are dying."""
    deadline = time.monotonic() + GRACE_SECONDS
    for directory, _, _ in os.walk(path, topdown=False):
        while Path(directory).exists():
            try:
                os.rmdir(directory)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
