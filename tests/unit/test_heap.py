"""What a fork allocates lies apart from what it shares."""

from __future__ import annotations

import subprocess
import sys

# Gaps of one block between two, of several sizes, for CPython's allocator and for libc's; then what lies in them?
_PROGRAM = """
import ctypes
from linux import heap
from linux.syscalls import libc

libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
libc.free.restype, libc.free.argtypes = None, (ctypes.c_void_p,)
sizes, large = (16, 32, 96, 256, 512), (24, 600, 3000, 30000)
old = [bytes(size - 33) if size > 32 else object() if size == 16 else 10**9 + n for size in sizes for n in range(4000)]
blocks = [libc.malloc(size) for size in large for n in range(100)]
pools, end = {id(one) >> 14 for one in old}, max(blocks)
del old[::2]
for block in blocks[::2]:
    libc.free(block)
if FILLED:
    heap.fill_gaps()
new = [bytes(size - 33) for size in sizes[2:] for n in range(10)]
later = [libc.malloc(size) for size in large for n in range(10)]
print(sum(id(one) >> 14 in pools for one in new), sum(block < end for block in later))
"""


def _in_gaps(*, filled: bool) -> list[int]:
    """How many objects, and how many blocks of libc, lie among the old ones."""
    told = subprocess.check_output([sys.executable, "-c", f"FILLED = {filled}\n{_PROGRAM}"], text=True)
    return [int(number) for number in told.split()]


def test_filled_gaps_take_nothing() -> None:
    assert _in_gaps(filled=False) == [30, 40]
    assert _in_gaps(filled=True) == [0, 0]
