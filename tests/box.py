"""The box that integration tests run in: mount, network, PID, IPC and cgroup namespaces of their own, and the directory
where `crisp run` puts logs.

Links, iptables rules, named network namespaces, mounts, cgroups and processes that a test leaves behind can then be
told from what else happens on the machine; none of it, nor ip_forward, reaches the machine; and whatever a crashed run
leaves is gone with it, but for empty cgroups below `/crisp-tests-NUMBER`. That one is the root of every hierarchy that
is seen in the box: each run starts with none, and sees nobody else's.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from linux import syscalls
from tests import cgroups

MARK = "CRISP_TEST_BOX"
_TREE = "crisp-tests-"
_CONTROLLER = re.compile(r"name=.*|cpu|cpuacct|cpuset|memory|devices|freezer|blkio|pids|hugetlb|net_cls|net_prio|"
                         r"perf_event|rdma|misc")  # fmt: skip

# The shell is PID 1 inside and reaps orphans, as an init would. / is shared again, as it is under systemd, since
# Bidirectional volumes need that.
INIT = """
set -e
mount --make-rshared /
mkdir -p /run/netns
mount -t tmpfs -o mode=755 netns /run/netns
mount --make-shared /run/netns
mkdir -p /var/log/crisp
mount -t tmpfs -o mode=755 logs /var/log/crisp
ip link set lo up
set +e
"$@"
exit $?
"""
NAMESPACES = (
    "--mount", "--net", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc", "--propagation=private"
)  # fmt: skip


def inside() -> bool:
    """Is this process in a box?"""
    return MARK in os.environ


def run_pytest(arguments: Sequence[str]) -> int:
    """Run pytest with these arguments in a new box, on this terminal; its exit status. Takes root."""
    return run([sys.executable, "-m", "pytest", *arguments])


def run(command: Sequence[str], environment: Mapping[str, str] = {}, init: str = INIT) -> int:
    """Run a command in a new box, on this terminal; its exit status. `environment` is added to ours."""
    cgroups.sweep(_TREE)
    with cgroups.tree(f"{_TREE}{os.getpid()}-{os.stat('/proc/self/ns/pid').st_ino}") as tree:
        script = "set -e\n" + "\n".join(_cgroup_mounts()) + init
        into = ["unshare", *NAMESPACES, "sh", "-c", script, "box", *command]
        with subprocess.Popen(
            ["unshare", "--cgroup", "sh", "-c", "\n".join((*_into_leaves(tree), 'exec "$@"')), "leaves", *into],
            env=_environment() | environment,
            preexec_fn=lambda: _join(tree),  # the namespace's root is where one is when it is made
        ) as box:
            # Ctrl-C reaches pytest inside by the terminal; dying here first would cut its tear-down short.
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                return box.wait()
            finally:
                signal.signal(signal.SIGINT, before)


def _environment() -> dict[str, str]:
    """Ours, but for a wish that would have every crispd compile all of its modules: half of what its start takes."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {MARK: "1"}


def _join(tree: Sequence[Path]) -> None:
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)  # which ends all that is in the box
    for path in tree:
        # A thread's move on version 1 is cheap, a process's waits for every fork on the machine.
        file = path / "tasks"
        (file if file.exists() else path / "cgroup.procs").write_text("0")


def _into_leaves(tree: Sequence[Path]) -> Iterator[str]:
    """Shell commands for version 2, where processes are in leaves (cgroup-v2.rst, "No Internal Process Constraint")."""
    for path in tree:
        if (path / "cgroup.controllers").exists():
            yield f"mkdir {path}/run && echo 0 >{path}/run/cgroup.procs || exit"


def _cgroup_mounts() -> Iterator[str]:
    """Shell commands that mount all hierarchies anew where they are, as the cgroup namespace shows them."""
    root = str(cgroups.ROOT)
    yield f"umount -R {root}"
    if not (cgroups.ROOT / "cgroup.controllers").exists():
        yield f"mount -t tmpfs -o mode=755 cgroup {root}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, filesystem = line.partition(" - ")
        place, (kind, _, options) = mount.split(" ")[4], filesystem.split(" ", 2)
        if kind not in ("cgroup", "cgroup2") or not f"{place}/".startswith(f"{root}/"):
            continue
        yield f"mkdir -p {place}"
        if kind == "cgroup":
            controllers = [option for option in options.split(",") if _CONTROLLER.fullmatch(option)]
            if controllers[0].startswith("name="):
                controllers.insert(0, "none")
            yield f"mount -t cgroup -o {','.join(controllers)} cgroup {place}"
        else:
            yield f"mount -t cgroup2 cgroup2 {place}"
    for link in cgroups.ROOT.iterdir():
        if link.is_symlink():
            yield f"ln -s {link.readlink()} {link}"
