"""What a plan of limits is made of. The plans themselves are pure: `v1.plan` and `v2.plan`."""

from __future__ import annotations

from runtime.errors import SpecError
from runtime.light import dataclass

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
