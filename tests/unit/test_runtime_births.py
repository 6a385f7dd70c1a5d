"""What a shim takes from a process that is born among a container's own, which these may make say anything."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from runtime.errors import RuntimeCoreError
from runtime.process.init import Start
from runtime.shim.exec import Exec
from runtime.shim.holdings import Holdings
from runtime.shim.launch.attempt import Attempt
from runtime.shim.launch.own import Listening
from runtime.wire.calls import Answer, ExecEnded
from runtime.wire.reports import EXEC, Conversation


class _Loop:
    def watch(self, fd: int, events: int, ready: Callable[[int], None]) -> None: ...

    def unwatch(self, fd: int) -> None: ...


def _some_file() -> int:
    return os.open("/dev/null", os.O_RDONLY)


def _say(channel: socket.socket, message: dict[str, Any], *fds: int) -> None:
    socket.send_fds(channel, [json.dumps(message).encode()], fds)
    for fd in fds:
        os.close(fd)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_an_exec_is_who_was_told_of_first() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    replies: list[Answer | RuntimeCoreError] = []
    execution = Exec(10, _some_file(), ours, _Loop(), replies.append, Conversation(EXEC, bears=True))
    _say(theirs, {"pid": 11}, _some_file())
    execution.take_what_is_there()
    before = _descriptors()
    for message in ({"pid": 12}, {"console": True}, {"hooks": True}):
        _say(theirs, message, _some_file())
    _say(theirs, {"pid": 12})
    theirs.close()
    execution.exited(3)
    assert (execution.pid, execution.awaits_birth, replies) == (11, False, [ExecEnded(3)])
    assert _descriptors() == before - 3  # the channel's ends and the process's


def test_a_container_is_who_was_told_of_first_and_its_hooks_run_before() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    born: list[int] = []
    ran: list[int] = []

    def take_over(pid: int, pidfd: int) -> None:
        born.append(pid)
        os.close(pidfd)

    held = SimpleNamespace(pid=10, hooks=SimpleNamespace(begin_creation=lambda pid, done: ran.append(pid)))
    attempt = SimpleNamespace(adopt=take_over)
    start = SimpleNamespace(steps=[], bears=True)
    listening = Listening(cast(Holdings, held), ours, cast(Start, start), cast(Attempt, attempt))
    with ours, theirs:
        _say(theirs, {"hooks": True})
        _say(theirs, {"pid": 11}, _some_file())
        _say(theirs, {"executing": [["ready to exec", 1]]})
        listening.take_what_is_there()
        assert start.steps == []  # what the born says is read as it comes, however much it is
        before = _descriptors()
        for message in ({"pid": 12}, {"console": True}, {"hooks": True}):
            _say(theirs, message, _some_file())
        for _ in range(4):
            listening.ready(0)
        assert (born, ran, start.steps) == ([11], [10], [("ready to exec", 1)])
        assert _descriptors() == before
