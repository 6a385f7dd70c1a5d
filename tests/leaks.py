"""What a test may leave behind in the kernel, as snapshots that can be compared.

Taken inside a box (tests/box.py), so mounts, links, rules, named network namespaces, cgroups and processes are this
run's alone. Loop devices are the machine's: ours are those of files below a directory that was claimed.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from linux.syscalls import filesystem_type
from runtime.cgroups import WORKERS_CGROUP
from tests import cgroups

NETNS = Path("/run/netns")
GRACE_SECONDS = 20.0  # for what the kernel takes apart on its own: cgroups of dead processes, links of dead namespaces
SAVE_COMMANDS = tuple(path for name in ("iptables-save", "ip6tables-save") if (path := shutil.which(name)))

_claimed: set[Path] = set()

# portmap's and firewall's chains, and the jumps to them, stay by design once a first port was mapped.
PERMANENT_CHAINS = re.compile(r"CNI-HOSTPORT-(DNAT|MASQ|SETMARK)\b|CNI-(FORWARD|ADMIN)\b")
EROFS = 0xE0F5E1E2
LAYER = "the mount of an image's layer"
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
            descriptors=Counter(_descriptors(Path("/proc/self/fd"), _of_spares())),
            loops=Counter(_loops()),
        )

    def since(self, earlier: Snapshot) -> list[str]:
        """A line for each thing that is here now and was not in `earlier`."""
        lines = []
        for field in fields(self):
            new = getattr(self, field.name) - getattr(earlier, field.name)
            if field.name == "processes":
                new = Counter(_described(process) for process in new)
            lines += [f"{field.name}: {thing}" + f" ({count} times)" * (count > 1) for thing, count in new.items()]
        return lines


def settle(before: Snapshot, grace: float = GRACE_SECONDS, foreign: str = "") -> list[str]:
    """What is left of everything made since `before`, once that is nothing or `grace` seconds have passed.

    Lines that the regular expression `foreign` is found in are others'.
    """
    deadline = time.monotonic() + grace
    while left := [line for line in Snapshot.take().since(before) if not (foreign and re.search(foreign, line))]:
        if time.monotonic() > deadline:
            return left
        gc.collect()  # an unreferenced socket is not a leak
        time.sleep(0.02)
    return []


def claim(directory: Path) -> None:
    """Take loop devices of files below `directory`, which nobody else writes to, for ours."""
    _claimed.add(directory.resolve())


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
    for hierarchy in cgroups.hierarchies():
        pending = [""]
        while pending:
            path = pending.pop()
            try:
                found = [f"{path}/{entry.name}" for entry in os.scandir(f"{hierarchy}{path}") if entry.is_dir()]
            except FileNotFoundError:
                continue
            pending += found
            seen.update(found)
    # Stays from the first pull on, as long as there is a crispd: tests/integration/test_image_memory.py sees it go.
    yield from seen - {WORKERS_CGROUP}


def _loops() -> Iterator[str]:
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            file = path.read_text().strip()
        except OSError:  # detached meanwhile
            continue
        if _claimed.intersection(Path(file).parents):
            yield f"{path.parents[1].name} of {file}"


def _processes() -> Iterator[str]:
    """Processes by number and start time, which an execve changes neither of.

    Without what each zygote has one of (the shim for the next pod, the planner, the second keeper), and the process
    that each daemon has for streams from the first on.
    """
    owners = set()
    for directory in _numbered(Path("/proc")):
        try:
            stat = (directory / "stat").read_text()
            fields = stat[stat.rindex(")") + 2 :].split()
            parent = fields[1]
            kind = _title_without_pod(directory, parent) or _serves_streams(directory, parent)
        except OSError:
            continue
        if kind and (parent, kind) not in owners:
            owners.add((parent, kind))
        else:
            yield f"{directory.name} started at {fields[19]}"


def _title_without_pod(directory: Path, parent: str) -> bytes:
    """The title of a planner, a second keeper, a shim without a pod, whose zygote lives; b"" of any other process."""
    title = (directory / "cmdline").read_bytes().rstrip(b"\0")
    of_zygote = title in (b"crisp-shim", b"crisp-planner", b"crisp-keeper")
    return title if of_zygote and Path("/proc", parent, "comm").read_text() == "crisp-zygote\n" else b""


def streams_of(daemon: int) -> int:
    """The process that serves a daemon's streams; 0 without one."""
    for directory in _numbered(Path("/proc")):
        with suppress(OSError):
            parent = (directory / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == daemon and _serves_streams(directory, parent):
                return int(directory.name)
    return 0


def _serves_streams(directory: Path, parent: str) -> bool:
    """Whether a process serves streams, and its daemon lives: else it has to end with the last one."""
    if (directory / "comm").read_text() != "crisp-streams\n":
        return False
    return re.search(rb"crispd|cri\.daemon|--stream-addr", Path("/proc", parent, "cmdline").read_bytes()) is not None


def _described(process: str) -> str:
    directory = Path("/proc", process.split(" ")[0])
    try:
        stat = (directory / "stat").read_text()
        command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return f"{process}, gone by now"
    name, (state, parent) = stat[stat.index("(") : stat.rindex(")") + 1], stat[stat.rindex(")") + 2 :].split()[:2]
    return f"{process}, state {state}, child of {parent}: {command or name}"


def _of_spares() -> set[str]:
    """The descriptors of shims that a node of this process has forked ahead: each has one or none, and that changes."""
    module = sys.modules.get("runtime.spare")
    kind = module.Spare if module is not None else None
    spares = (one for one in gc.get_referrers(kind) if type(one) is kind) if kind is not None else ()
    return {str(one._connection.fileno()) for one in spares}


def _descriptors(directory: Path, but: Container[str] = ()) -> Iterator[str]:
    for name in os.listdir(directory):
        if name in but:
            continue
        try:
            target = os.readlink(directory / name)
        except FileNotFoundError:
            continue
        if target == "/" and _is_of_erofs(directory / name):
            yield LAYER
        elif target not in POLLERS and not target.startswith("/proc/"):
            yield re.sub(r"^(socket|pipe):\[\d+\]", r"\1", target)


def _is_of_erofs(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_PATH)
    except OSError:
        return False
    try:
        return filesystem_type(descriptor) == EROFS
    finally:
        os.close(descriptor)


def _numbered(directory: Path) -> Iterator[Path]:
    return (directory / name for name in os.listdir(directory) if name.isdecimal())
