"""Connects the parties of a start: the launcher, the container, and the caller who gets the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from runtime.errors import OperationFailed, RuntimeCoreError
from runtime.shim.holdings import Holdings
from runtime.shim.reply import Reply
from runtime.shim.stdio import ContainerStdio
from runtime.spec.values import Process
from runtime.wire.calls import Start, Started

Steps = tuple[tuple[str, int], ...]


class Life(Protocol):
    """The part of a container that a start changes."""

    @property
    def killed(self) -> bool: ...

    @property
    def started_at(self) -> int: ...

    def init_exited(self, status: int) -> None: ...

    def started(self, outputs: Sequence[tuple[int, str]], console: int) -> None: ...

    def start_failed(self, outputs: Sequence[tuple[int, str]]) -> None: ...

    def exited_meanwhile(self) -> None: ...

    def kill(self) -> None: ...

    def wait(self, exited: Callable[[], None]) -> None: ...


class Attempt:
    """One start. A launcher calls `adopt`, then `succeed` or `fail` once. `succeed` takes over the terminal."""

    def __init__(
        self,
        life: Life,
        held: Holdings,
        call: Start,
        process: Process,
        stdio: ContainerStdio,
        received: int,
        reply: Reply,
    ) -> None:
        self.call = call
        self.process = process
        self.stdio = stdio
        self.received = received  # time of the call, by the monotonic clock in nanoseconds
        self._life = life
        self._held = held
        self._reply = reply

    @property
    def killed(self) -> bool:
        """Whether the container was killed before it ran."""
        return self._life.killed

    def kill(self) -> None:
        self._life.kill()

    def adopt(self, pid: int, pidfd: int) -> None:
        """Make a child of the shim the container's init. When it exits, the container has exited."""
        self._held.take_init(pid, pidfd)
        self._held.supervisor.on_exit(pid, self._life.init_exited)
        if self._life.killed:
            self._life.kill()

    def adopt_through(self, pid: int, pidfd: int) -> Callable[[int], None]:
        """Take a process that stands for an init which is no process of ours. Returns what is called at its exit."""
        self._held.take_init(pid, pidfd)
        return self._life.init_exited

    def succeed(self, console: int = -1, warnings: Sequence[str] = (), steps: Callable[[], Steps] = tuple) -> None:
        """Note that the program runs; run poststart hooks and answer."""
        try:
            self._life.started(self.stdio.outputs, console)
        except OSError as error:
            self._life.kill()
            self.fail(OperationFailed.of("watch output of", self._held.id, error))
            return

        def finish(failure: RuntimeCoreError | None) -> None:
            if failure is None:
                self._reply(Started(self._held.pid, self._life.started_at, tuple(warnings), steps()))
                return
            # If a poststart hook fails, the container is ended and the start fails.
            self._life.kill()
            self._life.wait(lambda: self._reply(failure))

        if self._held.hooks is None:
            finish(None)
        else:
            self._held.hooks.begin_poststart(self._held.pid, finish)
        self._life.exited_meanwhile()

    def fail(self, error: RuntimeCoreError) -> None:
        """Note that the program will not run, and answer with the error."""
        self._life.start_failed(self.stdio.outputs)
        self._reply(error)
