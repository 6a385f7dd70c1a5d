"""What a container asks of whoever makes its processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

from runtime.shim.launch.attempt import Attempt
from runtime.shim.reply import Reply
from runtime.spec.values import Process
from runtime.wire.calls import Exec, Start


class Commands(Protocol):
    """The exec'd processes of a container, by their keys."""

    def begin(self, call: Exec, fds: Sequence[int], reply: Reply) -> None:
        """Run one with `fds` as its streams. Replies with ExecEnded at its end. Raises RuntimeCoreError, OSError."""

    def wait_running(self, key: str, reply: Reply) -> None:
        """Reply once it runs, or has ended, with the other end of its terminal if it has one."""

    def kill(self, key: str) -> None:
        """SIGKILL it and all that it started, daemonised children of its session included."""

    def forget(self) -> None:
        """Let go of what nobody has asked for; the container is gone."""


class Launcher(Protocol):
    """One for each container; what it works with are the container's `Holdings`."""

    @property
    def commands(self) -> Commands: ...

    def place(self) -> None:
        """The rootfs and the images are mounted. Raises RuntimeCoreError."""

    def plan(self, call: Start, process: Process, fds: Sequence[int]) -> None:
        """Refuse what cannot be started before anything is made for it; `fds` came with the call."""

    def launch(self, attempt: Attempt, undo: contextlib.ExitStack) -> None:
        """Make the cgroup and begin to make the init; what comes of it is told to the attempt, later.

        Raises RuntimeCoreError, when what is in `undo` is undone.
        """

    def signal(self, number: int) -> None:
        """Send a signal to the init of the running container."""

    def release(self) -> None:
        """The container has ended, or was never started: let go of what `place` and `launch` made."""

    def when_released(self, callback: Callable[[], None]) -> None:
        """Call back once nothing that `release` began needs the bundle any more."""
