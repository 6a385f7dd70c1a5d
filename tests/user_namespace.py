"""crispd in a user namespace, as rootlesskit and other rootless set-ups start it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cri.v1 import api_pb2 as cri
from tests import cgroups, enter_user_namespace
from tests.daemon import Daemon
from tests.enter_user_namespace import FIRST


class RootlessDaemon(Daemon):
    """Its root is an ordinary user of the machine, with no right to anything of the machine's root."""

    def start(self) -> None:
        for path in (self.directory, *self.directory.rglob("*")):
            os.chown(path, FIRST, FIRST, follow_symlinks=False)
        self.directory.chmod(0o755)
        self.into = [sys.executable, "-m", enter_user_namespace.__name__]
        super().start()

    def directory_of_its_own(self, name: str) -> Path:
        """A directory that its root owns."""
        made = self.directory / name
        made.mkdir(parents=True)
        os.chown(made, FIRST, FIRST)
        return made

    def sandbox_config(self, name: str, **fields: Any) -> cri.PodSandboxConfig:
        self.directory_of_its_own(f"logs/{name}")
        return super().sandbox_config(name, **fields)

    def import_image(self, archive: Path, name: str = "") -> str:
        subprocess.run(["chmod", "-R", "a+rX", archive], check=True)
        return super().import_image(archive, name)


@contextmanager
def delegated_cgroups() -> Iterator[None]:
    """The root cgroups that this box sees belong to the namespace's root meanwhile, with their files."""
    given = [path for root in cgroups.hierarchies() for path in (root, *root.glob("*")) if not path.is_symlink()]
    owners = {path: path.stat() for path in given}
    for path in given:
        os.chown(path, FIRST, FIRST)
    try:
        yield
    finally:
        for path, owner in owners.items():
            os.chown(path, owner.st_uid, owner.st_gid)
