"""The size of a terminal (ioctl_tty(2))."""

from __future__ import annotations

import errno
import fcntl
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_TIOCSWINSZ: Final = 0x5414  # by number: to load `termios` takes longer than to use it


def resize(terminal: int, width: int, height: int) -> None:
    """Set the size in characters, by either end; who has the terminal in the foreground gets SIGWINCH."""
    size = struct.pack("HHHH", min(max(height, 0), 0xFFFF), min(max(width, 0), 0xFFFF), 0, 0)
    try:
        fcntl.ioctl(terminal, _TIOCSWINSZ, size)
    except OSError as error:
        if error.errno != errno.EIO:  # everybody at the other end has left
            raise
