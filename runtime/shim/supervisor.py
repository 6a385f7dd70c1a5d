"""What containers need of the shim that runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from runtime.cgroups import Cgroup
from runtime.shim.stdio import Loop
from runtime.wire.calls import Event, ExitStatus


class Supervisor(Loop, Protocol):
    """The shim's loop, its children, and what is told of containers."""

    def on_exit(self, pid: int, callback: Callable[[int], None]) -> None: ...

    def emit(self, event: Event) -> None: ...

    def later(self, delay: float, callback: Callable[[], None]) -> None: ...

    def uses_cgroup(self, cgroup: Cgroup) -> None: ...

    def record_exit(self, container_id: str, status: ExitStatus) -> None: ...

    def is_child(self, pid: int) -> bool: ...

    def start_holder(self) -> tuple[int, int]: ...

    def command_started(self, pid: int, done: Callable[[int], None]) -> None: ...

    @property
    def empty_mount_namespace(self) -> int: ...

    @property
    def user_namespace(self) -> int: ...
