"""Sets scheduling, I/O priority, CPU affinity, memory policy and personality, which execve preserves.

They come from `process.scheduler`, `ioPriority` and `execCPUAffinity`, `linux.memoryPolicy` and `personality`. They are
set before the process takes on the container's rights: the configuration may grant real-time policies and other memory
nodes, while the container itself may not take them.
"""

from __future__ import annotations

import os

from linux import cpu_lists, syscalls
from runtime.errors import SpecError, failing
from runtime.light import contextlib
from runtime.seccomp.passage import Passage
from runtime.spec import values as oci

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Final

POLICIES: Final[Mapping[str, int]] = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
_REAL_TIME: Final = frozenset({"SCHED_FIFO", "SCHED_RR"})
FLAGS: Final[Mapping[str, int]] = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
_IO_CLASSES: Final[Mapping[str, int]] = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
MEMORY_MODES: Final[Mapping[str, int]] = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}
MEMORY_FLAGS: Final[Mapping[str, int]] = {
    "MPOL_F_STATIC_NODES": 1 << 15,
    "MPOL_F_RELATIVE_NODES": 1 << 14,
    "MPOL_F_NUMA_BALANCING": 1 << 13,
}
_WITHOUT_NODES: Final = frozenset({"MPOL_DEFAULT", "MPOL_LOCAL"})
_PERSONALITIES: Final[Mapping[str, int]] = {"LINUX": 0x0, "LINUX32": 0x8}


def check(process: oci.Process, path: str = "process") -> None:
    """Refuse values that no kernel accepts. `path` is the process's JSON path. Raises SpecError."""
    if process.scheduler is not None:
        _check_scheduler(process.scheduler, f"{path}.scheduler")
    if process.exec_cpu_affinity is not None:
        for name in ("initial", "final"):
            numbers(getattr(process.exec_cpu_affinity, name), f"{path}.execCPUAffinity.{name}")


def _check_scheduler(scheduler: oci.Scheduler, path: str) -> None:
    if scheduler.policy not in POLICIES:
        raise SpecError(f"{path}.policy", f"expected one of {', '.join(POLICIES)}, got {scheduler.policy!r}")
    for index, flag in enumerate(scheduler.flags):
        if flag not in FLAGS:
            raise SpecError(f"{path}.flags[{index}]", f"expected one of {', '.join(FLAGS)}, got {flag!r}")
    if (scheduler.policy in _REAL_TIME) != bool(scheduler.priority):
        need = "needs a priority from 1 to 99" if scheduler.policy in _REAL_TIME else "has no priority"
        raise SpecError(f"{path}.priority", f"{scheduler.policy} {need}, got {scheduler.priority}")
    times = (scheduler.runtime, scheduler.deadline, scheduler.period)
    if scheduler.policy != "SCHED_DEADLINE":
        if any(times):
            raise SpecError(f"{path}.runtime", f"{scheduler.policy} has no runtime, deadline and period")
    elif not 0 < scheduler.runtime <= scheduler.deadline <= (scheduler.period or scheduler.deadline):
        raise SpecError(f"{path}.runtime", "expected runtime <= deadline <= period, in nanoseconds")


def check_memory_policy(policy: oci.MemoryPolicy, path: str = "linux.memoryPolicy") -> None:
    """Refuse values that no kernel accepts. Raises SpecError."""
    if policy.mode not in MEMORY_MODES:
        raise SpecError(f"{path}.mode", f"expected one of {', '.join(MEMORY_MODES)}, got {policy.mode!r}")
    for index, flag in enumerate(policy.flags):
        if flag not in MEMORY_FLAGS:
            raise SpecError(f"{path}.flags[{index}]", f"expected one of {', '.join(MEMORY_FLAGS)}, got {flag!r}")
    nodes = numbers(policy.nodes, f"{path}.nodes")
    if policy.mode in _WITHOUT_NODES and nodes:
        raise SpecError(f"{path}.nodes", f"{policy.mode} takes no nodes, got {policy.nodes!r}")
    if policy.mode not in _WITHOUT_NODES and not nodes and policy.mode != "MPOL_PREFERRED":
        raise SpecError(f"{path}.nodes", f"{policy.mode} needs nodes")


def numbers(text: str, path: str) -> frozenset[int]:
    """Return the members of a list of CPUs or nodes. Raises SpecError."""
    try:
        return cpu_lists.numbers(text)
    except ValueError as error:
        raise SpecError(path, str(error)) from error


def apply(process: oci.Process, linux: oci.Linux, *, inherited: bool) -> None:
    """Apply the scheduling of both to the calling process, or with `inherited` to its child. Raises OperationFailed."""
    if process.io_priority is not None:
        priority = process.io_priority
        with failing("set ioPriority", f"{priority.io_class} {priority.priority}"):
            syscalls.ioprio_set(_IO_CLASSES[priority.io_class] << 13 | priority.priority)
    if linux.memory_policy is not None:
        policy = linux.memory_policy
        mode = MEMORY_MODES[policy.mode] | sum(MEMORY_FLAGS[flag] for flag in policy.flags)
        with failing("set memoryPolicy", f"{policy.mode} {policy.nodes}".rstrip()):
            syscalls.set_mempolicy(mode, numbers(policy.nodes, "linux.memoryPolicy.nodes"))
    if linux.personality is not None:
        with failing("set personality", linux.personality.domain):
            syscalls.personality(_PERSONALITIES[linux.personality.domain])
    if process.scheduler is not None and not (inherited and ends_at_fork(process)):
        set_policy(process, Passage())


def ends_at_fork(process: oci.Process) -> bool:
    """Return whether children do not inherit the process's policy, or a process with it cannot fork (sched(7))."""
    scheduler = process.scheduler
    return scheduler is not None and (
        scheduler.policy == "SCHED_DEADLINE" or "SCHED_FLAG_RESET_ON_FORK" in scheduler.flags
    )


def set_policy(process: oci.Process, passage: Passage) -> None:
    """Apply `process.scheduler` to the calling process. Raises OperationFailed."""
    scheduler = process.scheduler
    assert scheduler is not None
    with failing("set scheduler", scheduler.policy):
        attributes = syscalls.sched_attributes(
            POLICIES[scheduler.policy],
            flags=sum(FLAGS[flag] for flag in scheduler.flags),
            nice=scheduler.nice,
            priority=scheduler.priority,
            runtime=scheduler.runtime,
            deadline=scheduler.deadline,
            period=scheduler.period,
        )
        passage.call("sched_setattr", 0, attributes, 0)


def leave_the_makers_cpus() -> None:
    """Reset the CPU affinity inherited from crisp, which a systemd unit may have restricted.

    For callers that have joined the container's cgroup, whose cpuset still applies. Old kernels reset it when a process
    joins a cpuset; since Linux 6.2 the kernel remembers the earlier affinity. Best effort: the cpuset may be empty.
    """
    with contextlib.suppress(OSError):
        syscalls.use_every_cpu()


@contextlib.contextmanager
def on_every_cpu() -> Iterator[None]:
    """Run on all CPUs of the caller's cgroup for a while, so that processes started meanwhile inherit that."""
    own = os.sched_getaffinity(0)
    leave_the_makers_cpus()
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def run_on(cpus: str, member: str) -> None:
    """Restrict the calling process to a list of CPUs, "" for no change. Raises OperationFailed, SpecError."""
    if wanted := numbers(cpus, f"process.execCPUAffinity.{member}"):
        with failing("set execCPUAffinity", cpus):
            os.sched_setaffinity(0, wanted)
