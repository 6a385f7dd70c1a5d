"""Bundles of busybox, and crisp-oci run on them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
CRISP_OCI = Path(sys.executable).parent / "crisp-oci"
APPLETS = ("sh", "cat", "echo", "hostname", "id", "kill", "ls", "mkdir", "readlink", "sleep", "stty", "tail", "touch",
           "true", "tty", "wc")  # fmt: skip
PARENT = f"/crisp-oci-test-{secrets.token_hex(4)}"  # of all containers' cgroups
Finished = subprocess.CompletedProcess[str]


@dataclass
class Bundle:
    """A bundle in `directory` and crisp-oci with state of its own beside it."""

    directory: Path

    @classmethod
    def make(cls, parent: Path) -> Bundle:
        binaries = parent / "bundle" / "rootfs" / "bin"
        binaries.mkdir(parents=True)
        shutil.copy("/bin/busybox", binaries / "busybox")
        for name in APPLETS:
            (binaries / name).symlink_to("busybox")
        return cls(parent / "bundle")

    @property
    def root(self) -> Path:
        return self.directory.parent / "state"

    @property
    def rootfs(self) -> Path:
        return self.directory / "rootfs"

    def configure(self, *args: str, process: Mapping[str, Any] = {}, linux: Mapping[str, Any] = {}, **top: Any) -> None:
        """Write config.json: `args` in new namespaces, /proc, /dev and /dev/pts; the rest is put over that."""
        default = {"args": list(args), "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
        namespaces = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]
        config = {
            "ociVersion": "1.2.0",
            "process": default | dict(process),
            "root": {"path": "rootfs"},
            "hostname": "alone",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
            ],
            "linux": {"namespaces": namespaces, "cgroupsPath": f"{PARENT}/one", **linux},
            **top,
        }
        (self.directory / "config.json").write_text(json.dumps(config))

    def command(self, *arguments: str) -> list[str]:
        """crisp-oci's command line."""
        return [sys.executable, "-m", "runtime.command", "--root", str(self.root), *arguments]

    def call(self, *arguments: str, stdin: str = "", check: bool = True, **options: Any) -> Finished:
        """Run crisp-oci in the bundle, to its end and that of all who got its streams: see `create`."""
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            self.command(*arguments), input=stdin, capture_output=True, text=True, cwd=self.directory, timeout=120,
            env=environment, **options,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done

    def create(self, *arguments: str, flags: Sequence[str] = ()) -> int:
        """`create one`, its streams being files; `flags` are global ones. The init's process id."""
        pid_file = self.directory.parent / "pid"
        with open(self.directory.parent / "output", "ab") as output:
            done = subprocess.run(
                self.command(*flags, "create", "--pid-file", str(pid_file), *arguments, "one"),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.directory, timeout=120,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            )  # fmt: skip
        assert done.returncode == 0, self.output()
        return int(pid_file.read_text())

    def output(self) -> str:
        """What containers made by `create` wrote."""
        path = self.directory.parent / "output"
        return path.read_text() if path.exists() else ""

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.call("state", "one").stdout)
        return state

    def status(self) -> str:
        return str(self.state()["status"])

    def delete(self) -> None:
        self.call("delete", "--force", "one")


def cgroup_file(name: str, controllers: Sequence[str] = ("memory", "pids", "cpu", "freezer")) -> str:
    """The content of a file of the container's cgroup, wherever it is mounted."""
    for controller in (*controllers, "unified", ""):
        path = Path("/sys/fs/cgroup") / controller / f"{PARENT}/one".lstrip("/") / name
        if path.exists():
            return path.read_text().strip()
    raise AssertionError(f"no {name}")
