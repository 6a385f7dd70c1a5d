"""`python -m tests.crash.daemon`: a crispd that can be killed, or kill its shims or its zygote, at exact points.

The points are where crispd changes something outside itself: each commit of its database, each call to a shim and each
answer of one, each run of a network plugin, each clean-up. They are put around the real functions here: crispd itself
has no code for them. Environment:

CRASH_PLAN: a file that arms the points while it exists: "<token> <index> <victim>". The points since the token changed
are counted from 0; at that index the victim (crispd, shim, zygote) is killed with SIGKILL. Every point is appended to
the file's name with ".points".
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cri.daemon.main import main
from network import chain
from pods.check.processes import shims
from pods.state import store
from pods.undo import Undo
from runtime.client import ShimClient

_PLAN = Path(os.environ["CRASH_PLAN"])
_lock = threading.Lock()
_token, _count = "", 0


class _State:
    """What `shims` needs of the settings."""

    state = Path(next(flag for flag in sys.argv if flag.startswith("--state=")).removeprefix("--state="))


def reach(name: str) -> None:
    """Count the point, and kill if it is the planned one."""
    global _token, _count
    try:
        token, index, victim = _PLAN.read_text().split()
    except (FileNotFoundError, ValueError):
        return
    with _lock:
        if token != _token:
            _token, _count = token, 0
        number, _count = _count, _count + 1
        with open(f"{_PLAN}.points", "a") as file:
            file.write(f"{token} {number} {name}\n")
    if number == int(index):
        for pid in _VICTIMS[victim]():
            os.kill(pid, signal.SIGKILL)


def _zygotes() -> list[int]:
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children if b"crisp zygote" in Path(f"/proc/{pid}/cmdline").read_bytes()]


_VICTIMS: dict[str, Callable[[], list[int]]] = {
    "crispd": lambda: [os.getpid()],
    "shim": lambda: [pid for pid, _sandbox in shims(_State)],
    "zygote": _zygotes,
    "both": lambda: [*_zygotes(), *(pid for pid, _sandbox in shims(_State))],
}


def _install() -> None:
    commit, send, take, run, register = (
        store._commit, ShimClient._send, ShimClient._take, chain.run_plugin, Undo.register
    )  # fmt: skip

    @functools.wraps(commit)
    def committing(database: Any, batch: Any) -> None:
        statements = {statement for writes, _ in batch for statement, _ in writes}
        words = sorted({statement.split(" (")[0].split(" WHERE")[0] for statement in statements})
        reach(f"before {'; '.join(words)}")
        commit(database, batch)
        reach(f"after {'; '.join(words)}")

    @functools.wraps(send)
    def sending(self: Any, call: Any, fds: Any) -> Any:
        future = send(self, call, fds)
        if call.call not in ("sync", "state"):
            reach(f"sent {call.call}")
            future.add_done_callback(lambda _future: reach(f"answered {call.call}"))
        return future

    @functools.wraps(run)
    async def running(binary: Path, environment: Any, stdin: bytes, seconds: float) -> bytes:
        name = f"{environment['CNI_COMMAND']} {binary.name}"
        reach(f"before {name}")
        answer = await run(binary, environment, stdin, seconds)
        reach(f"after {name}")
        return answer

    @functools.wraps(register)
    def registering(self: Any, name: str, undoing: Any, *args: Any, **kwargs: Any) -> None:
        async def undo() -> None:
            reach(f"undo {name}")
            done = undoing(*args, **kwargs)
            if asyncio.iscoroutine(done):
                await done

        register(self, name, undo)

    store._commit, ShimClient._send, ShimClient._take = committing, sending, take
    chain.run_plugin, Undo.register = running, registering


if __name__ == "__main__":
    _install()
    sys.exit(main())
