"""The frequency of this machine's time stamp counter, which QEMU's emulation shows to a guest as its own."""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable
from typing import Final

_READ: Final = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
_SAMPLES: Final = 50
_SECONDS: Final = 0.1


def kilohertz() -> int:
    """Measure it, exactly to some millionths, also on a busy machine. Only for x86_64."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(_READ)
        code = ctypes.c_char.from_buffer(page)
        read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(code))
        first, begun = _sample(read)
        time.sleep(_SECONDS)
        last, ended = _sample(read)
        del code
    return round((last - first) * 1_000_000 / (ended - begun))


def _sample(read: Callable[[], int]) -> tuple[int, int]:
    """The counter, and the nanoseconds at which it was read: of several tries the shortest."""
    tries = [(time.monotonic_ns(), read(), time.monotonic_ns()) for _ in range(_SAMPLES)]
    before, ticks, after = min(tries, key=lambda one: one[2] - one[0])
    return ticks, (before + after) // 2
