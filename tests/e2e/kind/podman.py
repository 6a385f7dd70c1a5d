"""podman with storage, networks and settings of its own, for kind to run nodes with."""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path
from typing import Final

_CONTAINERS: Final = """\
[containers]
default_ulimits = [{limits}]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
static_dir = "{directory}/libpod"
tmp_dir = "{directory}/tmp"
volume_path = "{directory}/volumes"
[network]
network_backend = "cni"
network_config_dir = "{directory}/networks"
cni_plugin_dirs = ["/usr/lib/cni"]
"""
_STORAGE: Final = """\
[storage]
driver = "overlay"
graphroot = "{directory}/storage"
runroot = "{directory}/run"
"""
_LIMITS: Final = {"nofile": (resource.RLIMIT_NOFILE, 1048576), "nproc": (resource.RLIMIT_NPROC, 32768)}


class Podman:
    """Its commands, and `environment`, which gives the same to other callers of podman, as kind is one."""

    def __init__(self, directory: Path) -> None:
        limits = ", ".join(f'"{name}={_limit(*kind)}"' for name, kind in _LIMITS.items())
        settings = {"CONTAINERS_CONF": _CONTAINERS, "CONTAINERS_STORAGE_CONF": _STORAGE}
        self.environment = dict(os.environ)
        (directory / "networks").mkdir(parents=True, exist_ok=True)
        for name, text in settings.items():
            path = directory / f"{name.lower()}.conf"
            path.write_text(text.format(directory=directory, limits=limits))
            self.environment[name] = str(path)

    def run(self, *arguments: str | Path) -> None:
        """Run a command of podman; what it says goes where our output does. Raises CalledProcessError."""
        subprocess.run(["podman", *arguments], env=self.environment, check=True, stdin=subprocess.DEVNULL)

    def read(self, *arguments: str | Path) -> str:
        """What a command of podman prints. Raises CalledProcessError."""
        done = subprocess.run(["podman", *arguments], env=self.environment, check=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, text=True)  # fmt: skip
        return done.stdout


def _limit(kind: int, usual: int) -> str:
    """What podman gives by default, or what root has, who may lack the right to have more."""
    hard = resource.getrlimit(kind)[1]
    value = usual if hard == resource.RLIM_INFINITY else min(hard, usual)
    return f"{value}:{value}"
