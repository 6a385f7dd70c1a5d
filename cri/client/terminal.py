"""The operator's terminal: raw while it shows a remote one, and always restored."""

from __future__ import annotations

import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def raw() -> Iterator[None]:
    """Pass each key on as it is pressed, if standard input is a terminal."""
    stdin = sys.stdin.fileno()
    if not os.isatty(stdin):
        yield
        return
    before = termios.tcgetattr(stdin)
    try:
        tty.setraw(stdin, termios.TCSADRAIN)  # keeps what was typed already
        yield
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def size() -> tuple[int, int] | None:
    """Return columns and lines; None without a terminal."""
    for stream in (0, 1, 2):
        try:
            columns, lines = os.get_terminal_size(stream)
        except OSError:
            continue
        return columns, lines
    return None
