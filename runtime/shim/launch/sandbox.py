"""Lets a runtime with sandboxes (gVisor) make a pod's: a container that holds it and runs nothing but a pause program.

The runtime puts the later containers into this sandbox. They are processes of its kernel, not of the host's. What the
host sees are the sandbox's few processes, in one cgroup; the first of them becomes the shim's child.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from runtime.cgroups import Cgroup, Hierarchies
from runtime.errors import NotRunning, RuntimeCoreError, failing
from runtime.light import contextlib, json
from runtime.logs.writer import complain
from runtime.process.infra import pause_program
from runtime.shim.estates import SANDBOX_KEY, SandboxEstate
from runtime.shim.launch.external_program import NO_STREAMS, ConsoleSocket, Program, adopted
from runtime.shim.reply import Reply
from runtime.shim.supervisor import Supervisor
from runtime.spec.parse import parse_resources
from runtime.spec.values import Resources
from runtime.wire.calls import Descriptors, Done, MakeSandbox

_PAUSE: Final = "pause"  # the file that config.json names
_CGROUP_PATIENCE: Final = 2.0  # seconds; the delay doubles up to it


class Sandbox:
    """A pod's sandbox. `lost` is called when it ends although nobody asked for it."""

    def __init__(
        self, call: MakeSandbox, supervisor: Supervisor, hierarchies: Hierarchies, lost: Callable[[], None]
    ) -> None:
        self._call = call
        self.id = call.sandbox
        self.pid = 0
        self.pidfd = -1
        self.cgroup = Cgroup.at(hierarchies, call.cgroup)
        self._bundle = call.bundle
        self._supervisor = supervisor
        self._program = Program(call.runtime, call.bundle, supervisor, call.flags)
        self._lost = lost
        self._making: Reply | None = None  # who waits for `make`
        self._known = False  # the runtime may have state of the sandbox
        self._ending: Callable[[], None] | None = None
        self._deleted = False
        self._forwards = 0

    @property
    def alive(self) -> bool:
        return self.pidfd >= 0

    # -- the start ----------------------------------------------------------------------------------------------------

    def make(self, reply: Reply) -> None:
        """Run `create`, then `start`. Replies when the sandbox runs. Raises RuntimeCoreError, OSError."""
        with failing("write", _PAUSE):
            os.makedirs(os.path.join(self._bundle, "rootfs"), 0o755)
            path = os.path.join(self._bundle, "rootfs", _PAUSE)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o555), "wb") as file:
                file.write(pause_program())
        if not self._program.by_systemd:
            # runsc sets no limits in a cgroup that exists, and would not remove parents that it makes itself.
            self._supervisor.uses_cgroup(self.cgroup)
            self.cgroup.create(self._limits())
        pid_file = os.path.join(self._bundle, "init.pid")
        words = ["create", "--bundle", self._bundle, "--pid-file", pid_file, self.id]
        self._program.run(words, NO_STREAMS, lambda status: self._created(status, pid_file))
        self._known = True
        self._making = reply

    def _limits(self) -> Resources:
        with open(os.path.join(self._bundle, "config.json"), "rb") as file:
            return parse_resources(json.load(file)["linux"]["resources"])

    def _created(self, status: int, pid_file: str) -> None:
        try:
            if status:
                raise self._program.failure("create", status)
            self.pid, self.pidfd = adopted(pid_file)
            self._supervisor.on_exit(self.pid, self._exited)
            self._program.run(["start", self.id], NO_STREAMS, self._started)
        except RuntimeCoreError as error:
            self._made(error)

    def deposit(self) -> None:
        """Deposit the sandbox, if it runs."""
        if self.alive and self._making is None:
            estate = SandboxEstate(self._call, self.pid)
            self._supervisor.deposits.put(SANDBOX_KEY, estate.encode(), [self.pidfd], self.pid)

    def succeed(self, estate: SandboxEstate, pidfd: int) -> None:
        """Take over the sandbox of an earlier shim."""
        self.pid, self.pidfd, self._known = estate.pid, pidfd, True
        if not self._program.by_systemd:
            self._supervisor.uses_cgroup(self.cgroup)
        self._supervisor.follow(self.pid, pidfd, self._exited)

    def _started(self, status: int) -> None:
        self._made(self._program.failure("start", status) if status else Done())

    def _made(self, result: Done | RuntimeCoreError) -> None:
        reply, self._making = self._making, None
        assert reply is not None
        self.deposit()
        reply(result)
        if self._ending is not None:
            self._delete()

    # -- the end ------------------------------------------------------------------------------------------------------

    def _exited(self, _status: int) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        self._supervisor.deposits.drop(SANDBOX_KEY)
        if self._ending is None:
            self._lost()
        else:
            self._check_end()

    def end(self, done: Callable[[], None]) -> None:
        """Have the runtime kill the sandbox and forget it. Its containers have been deleted."""
        self._ending = done
        if self._making is None:
            self._delete()

    def _delete(self) -> None:
        if self._known:
            self._program.run(["delete", "--force", self.id], NO_STREAMS, self._forgotten)
        else:
            self._forgotten(0)

    def _forgotten(self, status: int) -> None:
        if status:
            complain(str(self._program.failure("delete", status)))
            with contextlib.suppress(RuntimeCoreError):
                self.cgroup.kill_in_pod()
        self._deleted = True
        self._check_end()

    def _check_end(self, delay: float = 0.002) -> None:
        """Go on when the sandbox has exited and its cgroup is removed: its processes leave slightly after it."""
        if self.alive or not self._deleted or self._ending is None:
            return
        try:
            self.cgroup.remove()
        except RuntimeCoreError as error:
            if delay < _CGROUP_PATIENCE:
                self._supervisor.later(delay, lambda: self._check_end(2 * delay))
                return
            complain(f"could not remove the cgroup of sandbox {self.id}: {error}")
        done, self._ending = self._ending, None
        done()

    # -- ports --------------------------------------------------------------------------------------------------------

    def forward(self, port: int, reply: Reply) -> None:
        """Reply with a connection to a port of the sandbox's own network. Raises RuntimeCoreError, OSError."""
        if not self.alive:
            raise NotRunning("connect to a port: the pod's sandbox is gone")
        self._forwards += 1
        meeting = ConsoleSocket(self._bundle, f"forward-{self._forwards}")
        words = ["port-forward", "--stream", meeting.path, self.id, str(port)]
        try:
            self._program.run(words, NO_STREAMS, lambda status: self._forwarded(status, meeting, reply))
        except BaseException:
            meeting.close()
            raise

    def _forwarded(self, status: int, meeting: ConsoleSocket, reply: Reply) -> None:
        try:
            if status:
                raise self._program.failure("port-forward", status)
            with failing("connect to", "port"), meeting.connection() as connection:
                reply(Descriptors((connection.fileno(),)))
        except RuntimeCoreError as error:
            reply(error)
        finally:
            meeting.close()
