"""Defines the parts of a plan of limits. The plans themselves are pure functions: `v1.plan` and `v2.plan`."""

from __future__ import annotations

from runtime.errors import SpecError
from runtime.light import dataclass
from runtime.spec.values import CPU, HugepageLimit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Write:
    """A value to write to one file of a cgroup's directory.

    If the file does not exist, `fallback` is written instead. Without a fallback, `optional` means that the write may
    be skipped: a limit of 0 huge pages of a size the kernel does not account, no swap where swap is not accounted.
    """

    controller: str
    file: str
    value: str
    fallback: Write | None = None
    optional: bool = False


# Values that constrain each other. They are written in order. If the kernel answers EINVAL because a new value does
# not fit another old one, they are written in reverse order: one of both works for raising and for lowering.
Group: TypeAlias = tuple[Write, ...]


def number(value: int) -> str:
    """Format a limit as cgroup v2 expects it: a negative one is "max"."""
    return "max" if value < 0 else str(value)


def tasks(limit: int) -> str:
    """Format a limit of processes. At least 1: with 0 not even the container's program could be there."""
    return number(limit or 1)


def check_swap(limit: int, swap: int) -> None:
    """Refuse a swap limit (memory and swap together, bytes) that contradicts the memory limit."""
    if swap > 0 and limit <= 0:
        raise SpecError("linux.resources.memory.swap", f"{swap} is set without a memory limit")
    if 0 < swap < limit:
        raise SpecError("linux.resources.memory.swap", f"{swap} is less than the memory limit {limit}")


def cpusets(cpu: CPU) -> Iterator[Group]:
    """Plan CPUs and memory nodes, which are in the same files in both versions."""
    if cpu.cpus:
        yield (Write("cpuset", "cpuset.cpus", cpu.cpus),)
    if cpu.mems:
        yield (Write("cpuset", "cpuset.mems", cpu.mems),)


def hugepages(limit: HugepageLimit, file: str) -> Iterator[Group]:
    """Plan a limit of huge pages; `file` is the last part of the file's name."""
    value, none = str(limit.limit), not limit.limit
    yield (Write("hugetlb", f"hugetlb.{limit.page_size}.{file}", value, optional=none),)
    # Without it a process may reserve pages beyond the limit, and SIGBUS kills it when it touches them (Linux 5.7).
    yield (Write("hugetlb", f"hugetlb.{limit.page_size}.rsvd.{file}", value, optional=True),)
