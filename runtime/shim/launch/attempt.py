"""A start of a container, from the call to the answer: between its launcher, the container, and whoever asked."""

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
    """What a start does to a container."""

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
    """A launcher calls `adopt`, and then once `succeed` or `fail`; a terminal's other end is the attempt's then."""

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
        self.received = received  # when, by the monotonic clock in nanoseconds
        self._life = life
        self._held = held
        self._reply = reply

    @property
    def killed(self) -> bool:
        """Whether somebody wants the container to end, which does not run yet."""
        return self._life.killed

    def kill(self) -> None:
        self._life.kill()

    def adopt(self, pid: int, pidfd: int) -> None:
        """That process, a child of the shim's, is the container's init; its end is the container's."""
        self._held.take_init(pid, pidfd)
        self._held.supervisor.on_exit(pid, self._life.init_exited)
        if self._life.killed:
            self._life.kill()

    def succeed(self, console: int = -1, warnings: Sequence[str] = (), steps: Callable[[], Steps] = tuple) -> None:
        """The program runs. Runs poststart hooks, and answers."""
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
            # A container whose poststart hooks failed is ended, and was not started.
            self._life.kill()
            self._life.wait(lambda: self._reply(failure))

        if self._held.hooks is None:
            finish(None)
        else:
            self._held.hooks.begin_poststart(self._held.pid, finish)
        self._life.exited_meanwhile()

    def fail(self, error: RuntimeCoreError) -> None:
        """The program will not run."""
        self._life.start_failed(self.stdio.outputs)
        self._reply(error)
