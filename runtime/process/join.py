"""Runs an additional process in a running container (exec), in the child that the shim cloned.

The child joins the cgroup, then all namespaces with one setns(2) on a pidfd of the container's init, and becomes the
program. Joining a PID namespace affects only children, so at the end the child clones the program into it.
"""

from __future__ import annotations

import os

from linux import syscalls
from linux.tables import NAMESPACE_FLAGS
from runtime.cgroups import Cgroup
from runtime.errors import failing
from runtime.light import contextlib, dataclass
from runtime.namespaces import user as userns
from runtime.namespaces.user import IDMappings
from runtime.process import become as process
from runtime.process import scheduling
from runtime.process.gate import Gate
from runtime.process.home import with_home
from runtime.process.init import leave_the_loop
from runtime.process.parent import die_with_maker
from runtime.process.terminal import hand_over, open_multiplexer, open_peer, take_control
from runtime.seccomp.passage import Passage
from runtime.spec import values as oci
from runtime.wire.reports import Reporter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


@dataclass(slots=True)
class Join:
    """Everything that an exec'd process needs. The clone inherits the descriptors."""

    container_id: str
    spec: oci.Spec
    process: oci.Process
    init_pidfd: int
    cgroup: Cgroup
    in_unified_cgroup: bool
    stdio: tuple[int, int, int]  # ignored with a terminal
    filter_program: bytes = b""
    filter_flags: int = 0
    gate: Gate | None = None
    preserved: int = 0  # descriptors after the standard streams that the program gets
    mappings: IDMappings | None = None  # of the container's user namespace

    @property
    def bears(self) -> bool:
        """Whether the joining process clones the program, and reports it (`process.bear`)."""
        return self.spec.linux.namespace("pid") is not None


def namespace_flags(spec: oci.Spec) -> int:
    """Return the namespaces in which the container's init differs from the shim."""
    kinds = {namespace.type for namespace in spec.linux.namespaces}
    return sum(flag for kind, flag in NAMESPACE_FLAGS.items() if kind in kinds)


def exec_process(join: Join, reporter: Reporter) -> NoReturn:
    """Join the container and become the program. A failure is reported and ends the process with status 1."""
    try:
        leave_the_loop()
        affinity = join.process.exec_cpu_affinity
        if affinity is not None:
            scheduling.run_on(affinity.initial, "initial")
        join.cgroup.join_self(unified=not join.in_unified_cgroup)
        if affinity is None or not (affinity.initial or affinity.final):
            scheduling.leave_the_makers_cpus()
        else:
            scheduling.run_on(affinity.final, "final")
        scheduling.apply(join.process, join.spec.linux, inherited=join.bears)
        os.setsid()
        process.new_keyring(join.container_id)
        if join.process.oom_score_adj is not None:
            with contextlib.suppress(OSError):
                process.set_oom_score_adj(join.process.oom_score_adj)
        if join.mappings is not None:
            process.raise_hard_limits(join.process.rlimits)
            if not join.process.terminal:
                for target, fd in enumerate(join.stdio):
                    os.dup2(fd, target)
                process.own_streams(join.mappings.uid(join.process.user.uid))
        with failing("join namespaces of", "container"):
            syscalls.setns(join.init_pidfd, namespace_flags(join.spec))
            if join.mappings is not None:
                userns.become_root()
                die_with_maker()  # the change of ids cleared it
                process.new_keyring(join.container_id)
        stdio = _open_terminal(join, reporter) if join.process.terminal else join.stdio
        for target, fd in enumerate(stdio):
            os.dup2(fd, target)
        goes_on = process.bear if join.bears else process.become
        goes_on(
            with_home(join.process),
            join.filter_program,
            join.filter_flags,
            reporter,
            gate=join.gate,
            preserved=join.preserved,
        )
    except BaseException as error:  # the child must never return into the shim's code
        reporter.fail(error)
    os._exit(1)


def _open_terminal(join: Join, reporter: Reporter) -> tuple[int, int, int]:
    """Open a terminal in the caller's container as the three standard streams. The shim gets its other end."""
    master = open_multiplexer(lambda flags: os.open("/dev/pts/ptmx", flags))
    with failing("open", "/dev/pts/ptmx"):
        terminal = open_peer(master, join.process, join.process.user.uid)
    if not join.bears:
        take_control(terminal, Passage())
    hand_over(master, reporter)
    return terminal, terminal, terminal
