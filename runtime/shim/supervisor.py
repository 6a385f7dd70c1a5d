"""Defines what containers use of their shim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from runtime.cgroups import Cgroup
from runtime.process.script import Runner
from runtime.shim.deposits import Deposits
from runtime.shim.journal import Journal
from runtime.shim.planner import Planner
from runtime.shim.stdio import Loop
from runtime.wire.calls import Event, ExitStatus


class Parent(Loop, Protocol):
    """The shim's loop and its children."""

    def on_exit(self, pid: int, callback: Callable[[int], None]) -> None: ...

    def follow(self, pid: int, pidfd: int, callback: Callable[[int], None]) -> None: ...

    def command_started(self, pid: int, done: Callable[[int], None]) -> None: ...

    def is_child(self, pid: int) -> bool: ...


class Supervisor(Parent, Protocol):
    """The shim as containers see it: events, timers, cgroups, and what they are made with."""

    def emit(self, event: Event) -> None: ...

    def later(self, delay: float, callback: Callable[[], None]) -> None: ...

    def idly(self, delay: float, callback: Callable[[], None]) -> None: ...

    def uses_cgroup(self, cgroup: Cgroup) -> None: ...

    def record_exit(self, container_id: str, status: ExitStatus) -> None: ...

    @property
    def deposits(self) -> Deposits: ...

    @property
    def journal(self) -> Journal: ...

    def recorded_exit(self, container_id: str) -> ExitStatus | None: ...

    def start_holder(self) -> tuple[int, int]: ...

    @property
    def empty_mount_namespace(self) -> int: ...

    @property
    def script_runner(self) -> Runner: ...

    @property
    def pod_directory(self) -> str: ...

    @property
    def planner(self) -> Planner: ...

    @property
    def user_namespace(self) -> int: ...
