"""A container of crisp-oci that counts, in a file and in its output, and how it is checkpointed and restored."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

from tests.oci import REPOSITORY, Bundle
from tests.waiting import until

MIB = 1 << 20
wait_until = partial(until, seconds=60.0, pause=0.05)
SCRIPT = "i=0; while :; do i=$((i+1)); echo $i >/tmp/new; mv /tmp/new /tmp/count; echo $i; sleep 0.05; done"
_MOUNTS = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
    {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
    {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
    {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
]
_LINUX = {
    "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network", "cgroup")],
    "maskedPaths": ["/proc/kcore", "/sys/firmware"],
    "readonlyPaths": ["/proc/sys"],
    "resources": {"memory": {"limit": 64 * MIB}},
}


def configure(bundle: Bundle, *args: str, process: dict[str, Any] | None = None, **linux: object) -> None:
    """Write config.json, with all mounts that containers have, a limit, and a directory and a file of the host."""
    (bundle.rootfs / "bin/mv").symlink_to("busybox")
    volume = bundle.directory.parent / "volume"
    volume.mkdir()
    (volume / "file").write_text("the host's\n")
    binds = [
        {"destination": "/data", "type": "bind", "source": str(volume), "options": ["rbind", "ro"]},
        {"destination": "/etc/one", "type": "bind", "source": str(volume / "file"), "options": ["bind"]},
    ]
    bundle.configure(*args, mounts=[*_MOUNTS, *binds], linux=_LINUX | linux, process=process or {})


def start(bundle: Bundle, *flags: str) -> None:
    """Create and start the container, and wait until it has written some lines."""
    bundle.create(flags=flags)
    bundle.call("start", "one")
    wait_until(lambda: bundle.output().count("\n") > 5)


def restore(bundle: Bundle, *arguments: str, flags: tuple[str, ...] = ()) -> None:
    """With streams that are files, as `create` has them."""
    with open(bundle.directory.parent / "output", "ab") as output:
        command = bundle.command(*flags, "restore", "--detach", *arguments, "one")
        subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=bundle.directory, check=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip


def inside(bundle: Bundle, *command: str) -> str:
    """What a command printed that was executed in the container."""
    return bundle.call("exec", "one", *command).stdout.strip()


def count(bundle: Bundle) -> int:
    """How far the container has come."""
    return int(inside(bundle, "cat", "/tmp/count"))


def lines(bundle: Bundle) -> list[int]:
    """The numbers that it has written."""
    return [int(line) for line in bundle.output().splitlines()]


def mounts(bundle: Bundle) -> list[tuple[str, ...]]:
    """Where, what, and whether it can be written to. criu puts some in another order."""
    found = [line.split() for line in inside(bundle, "cat", "/proc/mounts").splitlines()]
    return sorted((point, kind, options.split(",")[0]) for _source, point, kind, options, *_rest in found)


def cgroup(bundle: Bundle) -> Path:
    """The cgroup of its first process in the hierarchy of version 2."""
    path = Path(f"/proc/{bundle.state()['pid']}/cgroup").read_text().strip().removeprefix("0::")
    return Path("/sys/fs/cgroup") / path.lstrip("/")
