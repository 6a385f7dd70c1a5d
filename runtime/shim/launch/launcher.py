"""Defines the interface between a container and the launcher that makes its processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from runtime.light import contextlib
from runtime.shim.launch.attempt import Attempt
from runtime.shim.reply import Reply
from runtime.spec.values import Process
from runtime.wire.calls import Exec, Prepare, Start


class Commands(Protocol):
    """The execs of a container, by key."""

    @property
    def running(self) -> bool:
        """Whether there are any."""

    def begin(self, call: Exec, fds: Sequence[int], reply: Reply) -> None:
        """Start one with `fds` as its streams. Replies with ExecEnded at its exit. Raises RuntimeCoreError, OSError."""

    def wait_running(self, key: str, reply: Reply) -> None:
        """Reply when the program runs or has exited; with its terminal's master if it has one."""

    def kill(self, key: str) -> None:
        """Kill it and everything that it started, including daemonised children in its session."""

    def forget(self) -> None:
        """Release the execs that nobody has asked for. The container is gone."""


class Launcher(Protocol):
    """Makes the processes of one container. It works with the container's `Holdings`."""

    @property
    def commands(self) -> Commands: ...

    @property
    def fills_cgroup(self) -> bool:
        """Whether the container's processes are in its cgroup, so that a scope needs no placeholder any more."""

    def place(self) -> None:
        """Do what is due when the rootfs and the images are mounted. Raises RuntimeCoreError."""

    def prepare(self, call: Prepare, fds: Sequence[int]) -> None:
        """Do ahead what a start needs; `fds` came with the call. If it raises, the start does it."""

    def plan(self, call: Start, process: Process, fds: Sequence[int]) -> None:
        """Refuse what cannot be started, before anything is made. `fds` came with the call."""

    def launch(self, attempt: Attempt, undo: contextlib.ExitStack) -> None:
        """Create the cgroup and begin to make the init. The result goes to the attempt, later.

        Raises RuntimeCoreError; then the caller runs `undo`.
        """

    def succeed(self, ended: Callable[[int], None] | None) -> None:
        """Take over what an earlier shim's launcher has made, which the holdings have.

        `ended` is to be called with the exit status of the running init; None for a container that does not run.
        """

    def signal(self, number: int) -> None:
        """Send a signal to the init of the running container."""

    def kill(self) -> None:
        """Kill every process of the container, which is not over. Does nothing if it has none."""

    def release(self) -> None:
        """Release what `place` and `launch` made. The container has exited or was never started."""

    def when_released(self, callback: Callable[[], None]) -> None:
        """Call back when nothing that `release` has started needs the bundle any more."""
