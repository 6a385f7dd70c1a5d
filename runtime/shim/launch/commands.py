"""Runs execs in containers whose namespaces crisp joins itself: its own ones, and those restored by criu."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.light import replace
from runtime.process.join import Join
from runtime.shim.execs import Execs, kill_orphans
from runtime.shim.holdings import Holdings
from runtime.shim.reply import Reply
from runtime.spec.values import Process, with_term
from runtime.wire.calls import Exec


class JoiningCommands:
    """Clones each exec from the shim. The process joins the namespaces of the container's init."""

    def __init__(self, held: Holdings) -> None:
        self._held = held
        self._execs = Execs(held.supervisor, held.supervisor.script_runner)

    @property
    def running(self) -> bool:
        return bool(self._execs)

    def begin(self, call: Exec, fds: Sequence[int], reply: Reply) -> None:
        held = self._held
        assert held.spec is not None
        assert held.spec.process is not None
        assert held.cgroup is not None
        join = Join(
            container_id=held.id,
            spec=held.spec,
            process=_process(held.spec.process, call),
            init_pidfd=held.pidfd,
            cgroup=held.cgroup.for_exec(held.pid),
            in_unified_cgroup=bool(held.cgroup.unified),
            stdio=(-1, -1, -1) if call.terminal else (fds[0], fds[1], fds[2]),
            filter_program=held.filter,
            filter_flags=held.filter_flags,
            mappings=held.mappings,
        )
        self._execs.begin(call.exec, join, reply)

    def succeed(self) -> None:
        """End the execs of an earlier shim: nobody reads them any more, or will hear how they end.

        In the machine's PID namespace they cannot be told from what the container has started: there they run on.
        """
        held = self._held
        if held.cgroup is not None and held.spec is not None and held.spec.linux.namespace("pid") is not None:
            kill_orphans(held.pid, held.cgroup)

    def wait_running(self, key: str, reply: Reply) -> None:
        self._execs.wait_running(key, reply)

    def kill(self, key: str) -> None:
        self._execs.kill(key, self._held.cgroup)

    def forget(self) -> None:
        self._execs.forget_unclaimed()


def _process(process: Process, call: Exec) -> Process:
    """Return the exec's process: like the container's own, except for program and terminal."""
    process = replace(process, args=call.args, terminal=call.terminal, console_size=None)
    if call.terminal:
        process = replace(process, env=with_term(process.env))
    return process
