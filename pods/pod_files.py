"""Mounts a small tmpfs for a pod's /etc/hostname, /etc/hosts and /etc/resolv.conf.

Containers may write to these files, and no writable layer counts those bytes: directly on the host's /run they could
fill the machine's memory (CVE-2020-8557). The tmpfs stays mounted until the pod is stopped, also when crispd ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from linux.mounts import mount_tmpfs, unmount_if_mounted
from runtime.errors import failing

NAMES: Final = ("resolv.conf", "hostname", "hosts")
_NAME: Final = "etc"
_ROOM: Final = 1 << 20  # bytes
_INODES: Final = 8  # the directory, three files, and some for editors that write beside a file


def make(sandbox_dir: Path, more: int) -> Path:
    """Mount the tmpfs for a pod's files, with room for `more` bytes beyond the usual. Raises RuntimeCoreError."""
    place = sandbox_dir / _NAME
    options = {"source": "crisp-etc", "mode": "0755", "size": str(_ROOM + more), "nr_inodes": str(_INODES)}
    with failing("mount `tmpfs` on", str(place)):
        mount_tmpfs(str(place), options)
    for name in NAMES:  # for people who look for them at the old path
        (sandbox_dir / name).symlink_to(f"{_NAME}/{name}")
    return place


def place(sandbox_dir: Path) -> Path:
    """Return the directory of a pod's files. Pods of an earlier crisp have them directly in their state directory."""
    own = sandbox_dir / _NAME
    return own if own.is_dir() else sandbox_dir


def unmount(sandbox_dir: Path) -> None:
    """Unmount the tmpfs, if it is mounted. Raises OSError."""
    unmount_if_mounted(str(sandbox_dir / _NAME))
