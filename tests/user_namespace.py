"""crispd in a user namespace, as rootlesskit and other rootless set-ups start it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cri.v1 import api_pb2 as cri
from linux import syscalls
from tests import cgroups
from tests.daemon import Daemon

FIRST, COUNT = 4_400_000, 131_072  # the host's ids that the namespace has, from 0 on
_KINDS = syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC


class RootlessDaemon(Daemon):
    """Its root is an ordinary user of the machine, with no right to anything of the machine's root."""

    def start(self) -> None:
        for path in (self.directory, *self.directory.rglob("*")):
            os.chown(path, FIRST, FIRST, follow_symlinks=False)
        self.directory.chmod(0o755)
        super().start()

    def before_exec(self) -> None:
        """Enter new user, mount, network and IPC namespaces, and become root there."""
        ready, told = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:  # stays outside, where the ids can be mapped
            try:
                os.read(ready[0], 1)
                for name in ("uid_map", "gid_map"):
                    Path(f"/proc/{os.getppid()}/{name}").write_text(f"0 {FIRST} {COUNT}\n")
                os.write(told[1], b"1")
            finally:
                os._exit(0)
        os.close(told[1])
        syscalls.unshare(_KINDS)
        os.write(ready[1], b"1")
        mapped = os.read(told[0], 1)
        os.waitpid(pid, 0)
        for descriptor in (*ready, told[0]):
            os.close(descriptor)
        assert mapped
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
        syscalls.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")  # as rootlesskit's --copy-up=/run

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
