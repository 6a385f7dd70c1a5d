"""Opens pseudo-terminals in a container's own devpts, in the child that becomes the program."""

from __future__ import annotations

import fcntl
import os
import stat
import struct

from linux.terminal import resize
from runtime.errors import NotSupported, failing
from runtime.seccomp.passage import Passage
from runtime.spec import values as oci
from runtime.wire.reports import Console, Reporter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

# Not from `termios`: importing it takes longer than the call.
_TIOCSCTTY: Final = 0x540E
_TIOCGPTPEER: Final = 0x5441
_TIOCSPTLCK: Final = 0x40045431
_PTMX: Final = os.makedev(5, 2)


def open_multiplexer(opened: Callable[[int], int]) -> int:
    """Open the container's /dev/pts/ptmx with `opened`. Check it first, since opening some devices has effects."""
    with failing("open", "/dev/pts/ptmx"):
        seen = opened(os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _require_multiplexer(seen)
        finally:
            os.close(seen)
        return opened(os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC)


def open_peer(master: int, process: oci.Process, owner: int) -> int:
    """Unlock the terminal whose master is `master`, and open it for the process. Raises OSError.

    `owner` is the process's user as an id of the caller's user namespace.
    """
    _require_multiplexer(master)
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    # By ioctl, because a path could lead elsewhere by now.
    terminal = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    if process.console_size is not None:
        resize(terminal, process.console_size.width, process.console_size.height)
    os.fchown(terminal, owner, -1)  # so that the user can open it by its name too
    return terminal


def _require_multiplexer(fd: int) -> None:
    """Refuse anything else that the container may have put at /dev/pts/ptmx."""
    status = os.fstat(fd)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _PTMX:
        raise NotSupported("open", "/dev/pts/ptmx", "it is not the pseudo-terminal multiplexer")


def hand_over(master: int, reporter: Reporter) -> None:
    """Send a terminal's master to the parent and close it here."""
    reporter.say(Console(master))
    os.close(master)


def take_control(terminal: int, passage: Passage) -> None:
    """Make the terminal the controlling terminal of the caller's session."""
    with failing("take as controlling terminal", "/dev/pts"):
        passage.call("ioctl", terminal, _TIOCSCTTY, 0)
