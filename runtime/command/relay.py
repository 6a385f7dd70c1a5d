"""Connects the caller's terminal to a container's, raw and of the same size, until the container's process ends."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import termios
import tty

from runtime.light import contextlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

_CHUNK: Final = 32768
_OUTPUT: Final = 1  # index in the list that tcgetattr returns
_DRAIN: Final = 64  # most reads after the process's end, for what it wrote before


def plain_lines(master: int) -> None:
    """If our output is a pipe or file, let the container's terminal end lines without carriage returns.

    Call it before the program runs. A terminal of ours is raw and needs the carriage returns.
    """
    if os.isatty(1):
        return
    attributes = termios.tcgetattr(master)
    attributes[_OUTPUT] &= ~termios.ONLCR
    termios.tcsetattr(master, termios.TCSANOW, attributes)


def relay(master: int, pidfd: int) -> None:
    """Copy between our standard streams and `master` until the process of `pidfd` ends, then close `master`."""
    with _raw(0), _following_size(master):
        poll = select.poll()
        poll.register(master, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        poll.register(0, select.POLLIN)
        watching = {master, 0}
        while True:
            ready = {fd for fd, _events in poll.poll()}
            if master in ready and not _copy(master, 1):
                poll.unregister(master)
                watching.discard(master)
            if 0 in ready and not _copy(0, master):
                poll.unregister(0)
            if pidfd in ready:
                break
        os.set_blocking(master, False)
        for _round in range(_DRAIN):
            if master not in watching or not _copy(master, 1):
                break
    os.close(master)


def _copy(source: int, target: int) -> bool:
    try:
        data = os.read(source, _CHUNK)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno != errno.EIO:  # the terminal's other end is closed
            raise
        return False
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(target, data) :]
        return True
    return bool(data == b"")


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _following_size(master: int) -> Iterator[None]:
    if not os.isatty(0):
        yield
        return

    def resize(_number: int = 0, _frame: object = None) -> None:
        size = fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8)
        if any(size):  # all zeros: our terminal's size is unknown
            fcntl.ioctl(master, termios.TIOCSWINSZ, size)

    before = signal.signal(signal.SIGWINCH, resize)
    resize()
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
