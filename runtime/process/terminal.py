"""Pseudo-terminals of a container's own devpts: made in the child that becomes the program, kept by its other end."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Callable

from linux.terminal import resize
from runtime.errors import NotSupported, failing
from runtime.seccomp.passage import Passage
from runtime.spec import values as oci
from runtime.wire.reports import Console, Reporter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# By number: to load `termios` takes longer than to use it.
_TIOCSCTTY: Final = 0x540E
_TIOCGPTPEER: Final = 0x5441
_TIOCSPTLCK: Final = 0x40045431
_PTMX: Final = os.makedev(5, 2)


def open_multiplexer(opened: Callable[[int], int]) -> int:
    """/dev/pts/ptmx of the container, which `opened` opens with flags; looked at first, since some devices act then."""
    with failing("open", "/dev/pts/ptmx"):
        seen = opened(os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _require_multiplexer(seen)
        finally:
            os.close(seen)
        return opened(os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC)


def open_peer(master: int, process: oci.Process, owner: int) -> int:
    """Unlock the terminal whose other end is open at `master`, and open it as the process's own. Raises OSError.

    `owner` is the process's user as the caller's user namespace numbers it.
    """
    _require_multiplexer(master)
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    # By ioctl, not by a path that could lead elsewhere by now.
    terminal = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    if process.console_size is not None:
        resize(terminal, process.console_size.width, process.console_size.height)
    os.fchown(terminal, owner, -1)  # so that the user can open it by its name too
    return terminal


def _require_multiplexer(fd: int) -> None:
    """The container may have put anything in the place of its /dev/pts/ptmx."""
    status = os.fstat(fd)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _PTMX:
        raise NotSupported("open", "/dev/pts/ptmx", "it is no pseudo-terminal multiplexer")


def hand_over(master: int, reporter: Reporter) -> None:
    """Pass a terminal's other end to the parent, which keeps it alone."""
    reporter.say(Console(master))
    os.close(master)


def take_control(terminal: int, passage: Passage) -> None:
    """Make the terminal that of the calling session's leader."""
    with failing("take as controlling terminal", "/dev/pts"):
        passage.call("ioctl", terminal, _TIOCSCTTY, 0)
