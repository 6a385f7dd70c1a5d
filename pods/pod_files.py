"""Where a pod has its /etc/hostname, /etc/hosts and /etc/resolv.conf: a small file system of its own.

Containers may write to them, and what they write is in no container's writable layer: on the host's /run it would
take the machine's memory without a bound (CVE-2020-8557). It is mounted until the pod is stopped, whatever crispd does.
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
    """Make a pod's place for its files, with room for `more` bytes than usual. Raises RuntimeCoreError."""
    place = sandbox_dir / _NAME
    options = {"source": "crisp-etc", "mode": "0755", "size": str(_ROOM + more), "nr_inodes": str(_INODES)}
    with failing("mount `tmpfs` on", str(place)):
        mount_tmpfs(str(place), options)
    for name in NAMES:  # for people, who look for them where they were
        (sandbox_dir / name).symlink_to(f"{_NAME}/{name}")
    return place


def place(sandbox_dir: Path) -> Path:
    """Where a pod has its files; those of an earlier crisp have them in their state directory itself."""
    own = sandbox_dir / _NAME
    return own if own.is_dir() else sandbox_dir


def unmount(sandbox_dir: Path) -> None:
    """Let go of the files; nothing there is fine. Raises OSError."""
    unmount_if_mounted(str(sandbox_dir / _NAME))
