"""Stands in for a foreground process: forwards signals, joins the terminals, returns the exit status."""

from __future__ import annotations

import os

from runtime.command.flags import Flag
from runtime.light import contextlib, signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

DETACH_FLAGS: Final = (
    Flag("detach", short="d", help="do not wait for the container"),
    Flag("no-subreaper", help="accepted and ignored: crisp-oci is never a subreaper"),
)
NOT_EXECUTED: Final = 255  # exit status of run and exec if the kernel could not execute the program
_OURS: Final = frozenset(  # not forwarded: not catchable, our own faults, our children's and our terminal's
    (signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT,
     signal.SIGTRAP, signal.SIGSYS, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH,
     signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
)  # fmt: skip
# All others are forwarded, as runc does. 32 and 33 belong to the C library.
FORWARDED: Final = tuple(number for number in range(1, signal.NSIG) if number not in _OURS and number not in (32, 33))


def forward_signals(pidfd: Callable[[], int]) -> None:
    """Forward signals that we get to the process of the pidfd. Call it before the process runs its program."""

    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd(), number)

    for number in FORWARDED:
        signal.signal(number, forward)


def attend(pid: int, pidfd: int, console: int) -> int:
    """Wait for our child and return its exit code, or 128 + the signal. `console` is its terminal's master or -1."""
    if console >= 0:
        from runtime.command.relay import relay

        relay(console, pidfd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return 128 - code if code < 0 else code
