"""Runs a command as root of new user, mount, network and IPC namespaces:   python -m tests.enter_user_namespace CMD...

A program of its own: a process with gRPC's threads, such as that of the tests, cannot fork and do this.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from linux import syscalls

FIRST, COUNT = 4_400_000, 131_072  # the host's ids that the namespace has, from 0 on
_KINDS = syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC


def enter() -> None:
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
    tree = Path.cwd()
    closed = next((path for path in reversed(tree.parents) if not path.stat().st_mode & 0o001), None)
    opened = os.open(tree, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    syscalls.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")  # as rootlesskit's --copy-up=/run
    if closed is not None:  # a checkout in root's home: others cannot get there
        syscalls.mount("tmpfs", str(closed), "tmpfs", 0, "mode=755")
        tree.mkdir(parents=True)
        syscalls.mount(f"/proc/self/fd/{opened}", str(tree), None, syscalls.MS_BIND | syscalls.MS_REC)
    os.close(opened)


if __name__ == "__main__":
    enter()
    os.execvp(sys.argv[1], sys.argv[1:])
