"""Runs containers inside a pod's sandbox (gVisor), by the runtime's commands.

The host has no process for such a container. The runtime's `wait`, a child of the shim, ends when the container does,
and prints its exit status; likewise the runtime's `exec` for a command.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from runtime.errors import NotRunning, RuntimeCoreError
from runtime.light import contextlib, json, signal
from runtime.shim.holdings import Holdings
from runtime.shim.launch.attempt import Attempt
from runtime.shim.launch.external import ExternalLauncher
from runtime.shim.launch.external_commands import DetachedCommands
from runtime.shim.launch.external_program import NO_STREAMS, ConsoleSocket, Program, console_flag
from runtime.shim.launch.sandbox import Sandbox
from runtime.wire.calls import Create, ExternalRuntime

_SANDBOX_DIED: Final = -signal.SIGKILL


class SandboxedLauncher(ExternalLauncher):
    """Lets the runtime execute config.json inside the pod's sandbox.

    The container's cgroup has its limits, for whoever looks for them, and no process: the limits in force are those of
    the pod.
    """

    fills_cgroup = False

    def __init__(self, held: Holdings, runtime: ExternalRuntime, call: Create, sandbox: Sandbox) -> None:
        super().__init__(held, runtime, call.cgroup, call.flags)
        self._sandbox = sandbox
        self._runs = False
        self.commands = DetachedCommands(held, self._program, in_sandbox=True)

    def launch(self, attempt: Attempt, undo: contextlib.ExitStack) -> None:
        """Run `create`, `start` and `wait`."""
        held = self._held
        assert held.spec is not None
        if not self._sandbox.alive:
            raise NotRunning(f"start container {held.id}: the pod's sandbox is gone")
        held.make_cgroup(self._cgroup, held.spec.linux.resources, undo)
        held.sandbox_cgroup = self._sandbox.cgroup
        console = ConsoleSocket(held.bundle) if attempt.process.terminal else None
        if console is not None:
            undo.callback(console.close)
        launch = _Launch(held.id, self._program, attempt, console, self._sandbox, self._running)
        undo.callback(launch.close)
        self._program.run(
            ["create", "--bundle", held.bundle, *console_flag(console), held.id], NO_STREAMS, launch.created
        )
        self._known = True

    def _running(self) -> None:
        self._runs = True

    def succeed(self, ended: Callable[[int], None] | None) -> None:
        self._held.sandbox_cgroup = self._sandbox.cgroup
        super().succeed(None)
        if ended is not None:
            self._known = self._runs = True
            wait_for_end(self._program, self._held.id, ended)

    def kill(self) -> None:
        """Kill every process of the container. Before its start there is none, and after its sandbox's end either."""
        if self._runs and self._sandbox.alive:
            self._program.run(["kill", "--all", self._held.id, str(int(signal.SIGKILL))], NO_STREAMS, lambda _: None)


class _Launch:
    """A start, from the command `create` to the beginning of `wait`."""

    def __init__(
        self,
        container_id: str,
        program: Program,
        attempt: Attempt,
        console: ConsoleSocket | None,
        sandbox: Sandbox,
        running: Callable[[], None],
    ) -> None:
        self._id = container_id
        self._program = program
        self._attempt = attempt
        self._console = console
        self._sandbox = sandbox
        self._running = running
        self._master = -1
        # `start` takes the streams, and the attempt's are closed before.
        stdin, stdout, stderr = [os.dup(fd) if fd >= 0 else -1 for fd in attempt.stdio.child]
        self._streams = stdin, stdout, stderr

    def created(self, status: int) -> None:
        try:
            if status:
                raise self._program.failure("create", status)
            if self._console is not None:
                self._master = self._console.master()
            if self._attempt.killed:
                raise RuntimeCoreError("the container was killed before its program ran")
            self._program.run(["start", self._id], self._streams, self._started)
        except RuntimeCoreError as error:
            self._fail(error)

    def _started(self, status: int) -> None:
        try:
            if status:
                raise self._program.failure("start", status)
            if not self._sandbox.alive:
                raise NotRunning(f"start container {self._id}: the pod's sandbox has ended")
            self._wait()
        except RuntimeCoreError as error:
            self._fail(error)
            return
        master, self._master = self._master, -1
        self.close()
        self._running()
        self._attempt.succeed(master)
        if self._attempt.killed:
            self._attempt.kill()

    def _wait(self) -> None:
        exited = self._attempt.adopt_through(self._sandbox.pid, os.dup(self._sandbox.pidfd))
        wait_for_end(self._program, self._id, exited)

    def _fail(self, error: RuntimeCoreError) -> None:
        self.close()
        self._attempt.fail(error)

    def close(self) -> None:
        """Close what the start does not need any more."""
        if self._console is not None:
            self._console.close()
            self._console = None
        for fd in (*self._streams, self._master):
            if fd >= 0:
                os.close(fd)
        self._streams, self._master = NO_STREAMS, -1


def wait_for_end(program: Program, container_id: str, exited: Callable[[int], None]) -> None:
    """Have the runtime wait for a container's end, and call back with its status. Raises OperationFailed, OSError."""
    reader, writer = os.pipe()

    def ended(status: int) -> None:
        with open(reader, "rb") as said:
            exited(_exit_code(said.read()) if status == 0 else _SANDBOX_DIED)

    try:
        program.run_long(["wait", container_id], (-1, writer, -1), ended)
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)


def _exit_code(said: bytes) -> int:
    """Return the exit status that `wait` has printed."""
    try:
        return int(json.loads(said)["exitStatus"])
    except (ValueError, TypeError, KeyError):
        return _SANDBOX_DIED
