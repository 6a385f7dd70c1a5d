"""Looks at processes in the moment of their birth and at their execve, by ptrace(2): nothing can happen in between.

As a program it traces a process and its children to come, and prints one JSON object a birth and an execve, until its
standard input ends: {"event": "birth" | "exec", "pid": ..., "namespaces": {...}, "status": {...}, ...}. With a number
it kills the process at that birth, before the newborn's first instruction.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal as signals
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

KINDS = ("mnt", "net", "ipc", "uts", "cgroup", "pid", "user", "time")
_SEIZE, _CONT = 0x4206, 7
_FORK, _VFORK, _CLONE, _EXEC = 2, 4, 8, 16  # options
_EXEC_EVENT, _STOP_EVENT = 4, 128
_WALL = 0x40000000
_STATUS = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
_libc = ctypes.CDLL(None, use_errno=True)


def look(pid: int, event: str) -> dict[str, Any]:
    """What the process is and has now."""
    with open(f"/proc/{pid}/status") as file:
        status = {name: text.split() for name, _, text in (line.partition(":") for line in file)}
    root, proc = os.stat(f"/proc/{pid}/root"), os.stat(f"/proc/{pid}/status")
    with open(f"/proc/{pid}/cgroup") as cgroups:
        groups = cgroups.read()
    return {
        "event": event,
        "pid": pid,
        "namespaces": {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in KINDS},
        "status": {name: status[name] for name in _STATUS},
        "root": [root.st_dev, root.st_ino],
        "exe": os.readlink(f"/proc/{pid}/exe"),
        "owner": proc.st_uid,
        "cgroup": groups,
        "files": {name: os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")},
    }


@dataclass(frozen=True, slots=True)
class Births:
    """Those below a traced process."""

    tracer: subprocess.Popen[bytes]

    @classmethod
    @contextlib.contextmanager
    def below(cls, pid: int, *, kill_at: int = 0) -> Iterator[Self]:
        """Trace that process; it goes on untraced afterwards. With `kill_at` it is killed at that birth."""
        tracer = subprocess.Popen(
            [sys.executable, "-m", "tests.births", str(pid), str(kill_at)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,  # a buffer would keep what comes after "ready"
        )  # fmt: skip
        assert tracer.stdout is not None
        try:
            assert tracer.stdout.readline() == b"ready\n"
            yield cls(tracer)
        finally:
            tracer.communicate()

    def seen(self) -> list[dict[str, Any]]:
        """All there were. Ends the tracing."""
        output, _ = self.tracer.communicate()
        return [json.loads(line) for line in output.splitlines()]


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    if _libc.ptrace(request, pid, ctypes.c_void_p(0), ctypes.c_void_p(data)) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _trace(seed: int, kill_at: int) -> None:
    _ptrace(_SEIZE, seed, _FORK | _VFORK | _CLONE | _EXEC)
    print("ready", flush=True)
    known = {seed}
    births = 0
    poll = select.poll()
    poll.register(0, select.POLLIN | select.POLLHUP)
    while not poll.poll(0):
        try:
            pid, status = os.waitpid(-1, _WALL | os.WNOHANG)
        except ChildProcessError:  # all have ended
            return
        if pid == 0:
            poll.poll(1)
            continue
        if not os.WIFSTOPPED(status):
            known.discard(pid)
            continue
        event, signal = status >> 16, os.WSTOPSIG(status)
        if event == _STOP_EVENT and pid not in known:
            known.add(pid)
            print(json.dumps(look(pid, "birth")), flush=True)
            births += 1
            if births == kill_at:
                os.kill(seed, signals.SIGKILL)
                while os.WIFSTOPPED(os.waitpid(seed, _WALL)[1]):
                    pass  # dead, and its descriptors closed, before the newborn does anything
        elif event == _EXEC_EVENT:
            print(json.dumps(look(pid, "exec")), flush=True)
        with contextlib.suppress(ProcessLookupError):
            _ptrace(_CONT, pid, 0 if event else signal)


if __name__ == "__main__":
    _trace(int(sys.argv[1]), int(sys.argv[2]))
