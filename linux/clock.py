"""Reads the state of the system clock (adjtimex(2))."""

from __future__ import annotations

import ctypes
import sys

from linux.syscalls import check, libc

_TIMEX_BYTES = 208  # struct timex on 64-bit machines
_STATUS_AT = 40
_STA_UNSYNC = 0x40


def is_synchronised() -> bool:
    """Return whether the kernel considers the clock synchronised, as an NTP daemon tells it. Raises OSError."""
    answer = ctypes.create_string_buffer(_TIMEX_BYTES)
    check(libc.adjtimex(answer), "", "adjtimex")
    return not int.from_bytes(answer.raw[_STATUS_AT : _STATUS_AT + 4], sys.byteorder) & _STA_UNSYNC
