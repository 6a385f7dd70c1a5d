"""What a test may leave behind in the kernel, as snapshots that can be compared.

Taken inside a box (tests/box.py), so mounts, links, rules, named network namespaces and processes are this run's alone.
Cgroups and loop devices are the machine's: a new cgroup in which only processes outside of the box live is not ours,
and while there is another box (two runs at once) new cgroups are nobody's.
"""

from __future__ import annotations

import fcntl
import gc
import os
import re
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from tests import box

CGROUPS = Path("/sys/fs/cgroup")
NETNS = Path("/run/netns")
GRACE_SECONDS = 2.0  # for what the kernel takes apart on its own: cgroups of dead processes, links of dead namespaces
SAVE_COMMANDS = tuple(path for name in ("iptables-save", "ip6tables-save") if (path := shutil.which(name)))

# Every run of tests holds a shared lock on it as long as it lives; the pytest that only waits for a box does not.
_ROSTER = os.open("/tmp/crisp-tests.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
if box.inside():
    fcntl.flock(_ROSTER, fcntl.LOCK_SH)

# portmap's and firewall's chains, and the jumps to them, stay by design once a first port was mapped.
PERMANENT_CHAINS = re.compile(r"CNI-HOSTPORT-(DNAT|MASQ|SETMARK)\b|CNI-(FORWARD|ADMIN)\b")
# gRPC opens its pollers when it likes.
POLLERS = frozenset({"anon_inode:[eventpoll]", "anon_inode:[eventfd]"})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything of each kind that exists. Multiplicity counts: a second mount at the same place is a new one."""

    mounts: Counter[str]
    namespaces: Counter[str]
    links: Counter[str]
    rules: Counter[str]
    cgroups: Counter[str]
    processes: Counter[str]
    descriptors: Counter[str]
    loops: Counter[str]

    @classmethod
    def take(cls) -> Snapshot:
        return cls(
            mounts=Counter(_mounts()),
            namespaces=Counter(os.listdir(NETNS) if NETNS.is_dir() else ()),
            links=Counter(name for _, name in socket.if_nameindex()),
            rules=Counter(_rules()),
            cgroups=Counter(_cgroups()),
            processes=Counter(_processes()),
            descriptors=Counter(_descriptors(Path("/proc/self/fd"))),
            loops=Counter(str(path.parent) for path in Path("/sys/block").glob("loop*/loop")),
        )

    def since(self, earlier: Snapshot) -> list[str]:
        """A line for each thing that is here now and was not in `earlier`."""
        lines = []
        for field in fields(self):
            new = getattr(self, field.name) - getattr(earlier, field.name)
            if field.name == "cgroups":
                new = Counter(path for path in new if is_alone() and not _is_foreign(path))
            if field.name == "processes":
                new = Counter(_described(process) for process in new)
            lines += [f"{field.name}: {thing}" + f" ({count} times)" * (count > 1) for thing, count in new.items()]
        return lines


def settle(before: Snapshot, grace: float = GRACE_SECONDS) -> list[str]:
    """What is left of everything made since `before`, once that is nothing or `grace` seconds have passed."""
    deadline = time.monotonic() + grace
    while left := Snapshot.take().since(before):
        if time.monotonic() > deadline:
            return left
        gc.collect()  # an unreferenced socket is not a leak
        time.sleep(0.02)
    return []


def is_alone() -> bool:
    """Is there no other run of tests on the machine, whose cgroups would be taken for ours?"""
    try:
        fcntl.flock(_ROSTER, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        fcntl.flock(_ROSTER, fcntl.LOCK_SH)
    return True


def descriptors_of(pid: int) -> Counter[str]:
    """The open descriptors of a process by what they are, numbers left out."""
    return Counter(_descriptors(Path(f"/proc/{pid}/fd")))


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split(" ")
        kind, source = words[words.index("-") + 1 :][:2]
        yield f"{kind} {source} on {words[4]}"


def _rules() -> Iterator[str]:
    for command in SAVE_COMMANDS:
        saved = subprocess.run([command], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
        for line in saved.splitlines():
            # ":CHAIN POLICY [packets:bytes]": built-in chains have a policy and appear with a table's first use.
            if line.startswith("-A") or (line.startswith(":") and line.split(" ")[1] == "-"):
                rule = line.split(" [")[0]
                if not PERMANENT_CHAINS.search(rule):
                    yield f"{Path(command).name.removesuffix('-save')} {rule}"


def _cgroups() -> Iterator[str]:
    """Paths relative to the hierarchy they are in: a cgroup of the same name in ten hierarchies is one."""
    seen = set()
    for hierarchy in _hierarchies():
        pending = [""]
        while pending:
            path = pending.pop()
            try:
                found = [f"{path}/{entry.name}" for entry in os.scandir(f"{hierarchy}{path}") if entry.is_dir()]
            except FileNotFoundError:
                continue
            pending += found
            seen.update(found)
    yield from seen


def _hierarchies() -> list[Path]:
    if (CGROUPS / "cgroup.procs").exists():
        return [CGROUPS]
    return [path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]


def _is_foreign(cgroup: str) -> bool:
    """Does the pids controller count tasks in that cgroup, none of which we can see?"""
    for hierarchy in (CGROUPS / "pids", CGROUPS):
        try:
            tasks = int((hierarchy / cgroup.lstrip("/") / "pids.current").read_text())
        except OSError:
            continue
        return tasks > 0 and not any(_is_within(member, cgroup) for member in _cgroups_in_use())
    return False


def _cgroups_in_use() -> Iterator[str]:
    for directory in _numbered(Path("/proc")):
        try:
            lines = (directory / "cgroup").read_text().splitlines()
        except OSError:
            continue
        yield from (line.split(":", 2)[2] for line in lines)


def _is_within(path: str, parent: str) -> bool:
    return path == parent or path.startswith(f"{parent}/")


def _processes() -> Iterator[str]:
    """Processes by number and start time, which an execve changes neither of."""
    for directory in _numbered(Path("/proc")):
        try:
            stat = (directory / "stat").read_text()
        except OSError:
            continue
        yield f"{directory.name} started at {stat[stat.rindex(')') + 2 :].split()[19]}"


def _described(process: str) -> str:
    directory = Path("/proc", process.split(" ")[0])
    try:
        stat = (directory / "stat").read_text()
        command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return f"{process}, gone by now"
    name, (state, parent) = stat[stat.index("(") : stat.rindex(")") + 1], stat[stat.rindex(")") + 2 :].split()[:2]
    return f"{process}, state {state}, child of {parent}: {command or name}"


def _descriptors(directory: Path) -> Iterator[str]:
    for name in os.listdir(directory):
        try:
            target = os.readlink(directory / name)
        except FileNotFoundError:
            continue
        if target not in POLLERS and not target.startswith("/proc/"):
            yield re.sub(r"^(socket|pipe):\[\d+\]", r"\1", target)


def _numbered(directory: Path) -> Iterator[Path]:
    return (directory / name for name in os.listdir(directory) if name.isdecimal())
