"""Sets the size of a terminal (ioctl_tty(2))."""

from __future__ import annotations

import errno
import fcntl
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_TIOCSWINSZ: Final = 0x5414  # not from `termios`: importing it takes longer than the call


def resize(terminal: int, width: int, height: int) -> None:
    """Set the size in characters, through either end. The foreground process group gets SIGWINCH."""
    size = struct.pack("HHHH", min(max(height, 0), 0xFFFF), min(max(width, 0), 0xFFFF), 0, 0)
    try:
        fcntl.ioctl(terminal, _TIOCSWINSZ, size)
    except OSError as error:
        if error.errno != errno.EIO:  # the other end is closed
            raise
