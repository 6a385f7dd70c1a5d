"""A process that is to become a program dies with whoever made it, until it runs that program.

It has copies of its maker's sockets, so it would not notice that the maker is dead, and nobody else knows of it.
"""

from __future__ import annotations

import os

from linux import syscalls
from runtime.light import contextlib, signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_maker = -1  # a pidfd of the process that has made this one


@contextlib.contextmanager
def own_pidfd() -> Iterator[int]:
    """A pidfd of the caller, for the child that it clones meanwhile. Raises OSError."""
    fd = syscalls.pidfd_open(os.getpid())
    try:
        yield fd
    finally:
        os.close(fd)


def die_with(maker: int) -> None:
    """Have the kernel kill the caller when its parent dies, or exit if it is dead. `maker` is the parent's pidfd.

    The kernel sends no signal if the parent died before it was asked. In a new PID namespace nobody can tell by number
    who the parent is. Raises OSError.
    """
    global _maker
    _maker = maker
    die_with_maker()


def die_with_maker() -> None:
    """Do so again, after a change of ids, which the kernel takes for a reason to forget it."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if syscalls.has_ended(_maker):
        os._exit(1)
