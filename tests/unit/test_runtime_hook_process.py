"""Hooks run by a process of a container's shim."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable

import pytest

from linux import syscalls
from runtime.shim.hook_process import ContainerHooks
from runtime.spec.parse import parse

PATIENCE = 60.0  # seconds


class Children:
    """A shim's part: who has been started, and what to call at the end."""

    def __init__(self) -> None:
        self.ended: list[tuple[int, Callable[[int], None]]] = []

    def on_exit(self, pid: int, callback: Callable[[int], None]) -> None:
        self.ended.append((pid, callback))

    def wait(self) -> None:
        (pid, callback), self.ended = self.ended[0], []
        pidfd = os.pidfd_open(pid)
        in_time = select.select([pidfd], [], [], PATIENCE)[0]
        os.close(pidfd)
        if not in_time:
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        assert in_time, "the hooks' process waits for somebody"
        callback(os.waitstatus_to_exitcode(status))


def _hooks(children: Children, script: str, count: int) -> ContainerHooks:
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script]}
    spec = parse(
        {
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {"cwd": "/", "args": ["x"], "user": {"uid": 0, "gid": 0}},
            "hooks": {"poststop": [hook] * count},
            "linux": {},
        }
    )
    hooks = ContainerHooks(spec, "one", "/nowhere", children)
    hooks.begin_poststart(1, lambda _failure: None)  # it came to be
    return hooks


def test_what_failed_hooks_printed_has_no_bound_together(capfd: pytest.CaptureFixture[str]) -> None:
    children = Children()
    # Bytes that are no text take six characters each in JSON: more than a pipe takes, already of few hooks.
    script = r"i=0; while [ $i -lt 500 ]; do printf '\377\377\377\377\377\377\377\377'; i=$((i+1)); done; exit 3"
    _hooks(children, script, 5).begin_poststop()
    children.wait()
    told = capfd.readouterr().err
    assert [told.count(f"error running poststop hook #{number}: `/bin/sh`: exit status 3") for number in range(5)] == (
        [1] * 5
    )


def test_poststop_hooks_that_cannot_be_run_are_told_of(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused() -> int:
        raise BlockingIOError(11, "no more processes")

    hooks = _hooks(Children(), "exit 0", 1)
    monkeypatch.setattr(syscalls, "fork", refused)
    before = len(os.listdir("/proc/self/fd"))
    hooks.begin_poststop()
    assert "container one: make process for `hooks`" in capfd.readouterr().err
    assert len(os.listdir("/proc/self/fd")) == before
