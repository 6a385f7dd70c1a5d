"""Standing in for a process in the foreground: signals to it, its terminal to ours, its exit status for ours."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from runtime.command.flags import Flag
from runtime.light import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

DETACH_FLAGS: Final = (
    Flag("detach", short="d", help="do not wait for the container"),
    Flag("no-subreaper", help="accepted: crisp-oci is none"),
)
NOT_EXECUTED: Final = 255  # the status of an exec, and of a container, whose program the kernel did not execute
_OURS: Final = frozenset(  # what nobody can catch, our own faults, and what our children and terminal have to tell us
    (signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT,
     signal.SIGTRAP, signal.SIGSYS, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH,
     signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
)  # fmt: skip
# All others, as runc does; 32 and 33 are the C library's.
FORWARDED: Final = tuple(number for number in range(1, signal.NSIG) if number not in _OURS and number not in (32, 33))


def forward_signals(pidfd: Callable[[], int]) -> None:
    """From now on signals to us are signals to the process of that pidfd; to be called before it runs its program."""

    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd(), number)

    for number in FORWARDED:
        signal.signal(number, forward)


def attend(pid: int, pidfd: int, console: int) -> int:
    """Wait for our child, its terminal's master being `console` or -1. Its exit code, 128 + a signal that ended it."""
    if console >= 0:
        from runtime.command.relay import relay

        relay(console, pidfd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return 128 - code if code < 0 else code
