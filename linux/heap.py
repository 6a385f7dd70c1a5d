"""Prepares a process's heap for its forks.

A child shares a page with its parent until one of them writes to it. CPython's allocator and libc's put new objects
into the gaps that earlier ones have left, and these are all over the heap: each small object would cost a page.
"""

from __future__ import annotations

import ctypes
import gc

from linux.syscalls import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

# Of CPython's Objects/obmalloc.c: blocks of one size are in a pool. A pool without a gap is not looked at.
_POOL_BYTES: Final = 16 << 10
_POOL_HEADER: Final = 48
_STEP: Final = 16
_LARGEST: Final = 512
_BYTES_HEADER: Final = 33  # of a bytes object, with its null byte
_NUMBER_BYTES: Final = 32
_NUMBERS: Final = 4  # that this module has at a time, in the pool that it fills
_MOST: Final = 100_000  # blocks: another allocator has no pools
# Sizes that are tried with libc, the largest first. What remains of a gap is filled by a later one.
_SIZES: Final = (*(64 << 10 >> shift for shift in range(6)), *range(1032, 8, -16))

_kept: list[object] = []


class _Use(ctypes.Structure):
    """mallinfo2 of mallinfo(3)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
                     "keepcost")
    )  # fmt: skip


def fill_gaps() -> None:
    """Occupy the gaps for as long as the process and its children live."""
    gc.collect()  # this empties the interpreter's lists of spare objects, too
    for size in range(_STEP, _LARGEST + 1, _STEP):
        _fill_pools(size)
    if hasattr(libc, "mallinfo2"):
        _fill_libc()


def _fill_pools(size: int) -> None:
    """Allocate blocks of a size until they fill a pool: it was taken because no other one had a gap."""
    make = _maker(size)
    full = (_POOL_BYTES - _POOL_HEADER) // size - (_NUMBERS if size == _NUMBER_BYTES else 0)
    pool = count = 0
    for _ in range(_MOST):
        block = make()
        _kept.append(block)
        if id(block) // _POOL_BYTES != pool:
            pool, count = id(block) // _POOL_BYTES, 0
        count += 1
        if count == full:
            return


def _maker(size: int) -> Callable[[], object]:
    if size < _BYTES_HEADER:
        return object if size == _STEP else lambda: int("1000000000")
    return lambda: bytes(size - _BYTES_HEADER)


def _fill_libc() -> None:
    """Allocate until libc takes what is above all gaps."""
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.sbrk.argtypes = (ctypes.c_size_t,), (ctypes.c_ssize_t,)
    libc.mallinfo2.restype = _Use
    above = libc.sbrk(0) - libc.mallinfo2().keepcost
    for size in _SIZES:
        while 0 < (libc.malloc(size) or 0) < above:
            pass
