"""What a plan of limits is made of. The plans themselves are pure: `v1.plan` and `v2.plan`."""

from __future__ import annotations

from collections.abc import Iterator

from runtime.errors import SpecError
from runtime.light import dataclass
from runtime.spec.values import CPU, HugepageLimit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Write:
    """One value for one file of a cgroup's directory.

    Where the file does not exist, `fallback` is written instead; failing that, `optional` says that nothing is lost
    (a limit of zero pages of a size nothing accounts for, no swap where there is no swap accounting).
    """

    controller: str
    file: str
    value: str
    fallback: Write | None = None
    optional: bool = False


# Values which constrain each other. They are written in order or, where the kernel answers EINVAL because the new one
# and the old other one do not go together, in the reverse order: so it works for raising as well as for lowering.
Group: TypeAlias = tuple[Write, ...]


def number(value: int) -> str:
    """A limit as cgroup v2 writes it: negative is "max"."""
    return "max" if value < 0 else str(value)


def tasks(limit: int) -> str:
    """A limit of processes. The least is one: with none, not even the container's program could be there."""
    return number(limit or 1)


def check_swap(limit: int, swap: int) -> None:
    """Refuses a swap limit (memory and swap together, bytes) that the memory limit makes senseless."""
    if swap > 0 and limit <= 0:
        raise SpecError("linux.resources.memory.swap", f"{swap} is set without a memory limit")
    if 0 < swap < limit:
        raise SpecError("linux.resources.memory.swap", f"{swap} is less than the memory limit {limit}")


def cpusets(cpu: CPU) -> Iterator[Group]:
    """The processors and memory nodes, which both versions have in the same files."""
    if cpu.cpus:
        yield (Write("cpuset", "cpuset.cpus", cpu.cpus),)
    if cpu.mems:
        yield (Write("cpuset", "cpuset.mems", cpu.mems),)


def hugepages(limit: HugepageLimit, file: str) -> Iterator[Group]:
    """A limit of huge pages, in files of that name for each size."""
    value, none = str(limit.limit), not limit.limit
    yield (Write("hugetlb", f"hugetlb.{limit.page_size}.{file}", value, optional=none),)
    # Without it a process may reserve pages beyond the limit and be killed by SIGBUS when it touches them (5.7).
    yield (Write("hugetlb", f"hugetlb.{limit.page_size}.rsvd.{file}", value, optional=True),)
