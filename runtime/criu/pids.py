"""Reads from criu's images which pids the processes had."""

from __future__ import annotations

import struct

from runtime.criu.worker import fields_of
from runtime.errors import RuntimeCoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

PROCESSES: Final = "pstree.img"
_MAGIC: Final = 8  # bytes: that of all images, and this one's
# Of a pstree_entry: pid, ppid, pgid, sid, threads. criu makes processes of all these ids, also to restore a group or a
# session whose first process has ended.
_IDS: Final = (1, 3, 4, 5)


def highest(image: bytes) -> int:
    """Return the largest pid, thread, process group or session in the image of processes. Raises RuntimeCoreError."""
    found, at = 0, _MAGIC
    while at < len(image):
        if at + 4 > len(image):
            raise RuntimeCoreError(f"criu's image {PROCESSES} is truncated")
        (length,) = struct.unpack_from("<I", image, at)
        at += 4
        for number, value in fields_of(image[at : at + length]):
            if number in _IDS and isinstance(value, int):
                found = max(found, value)
        at += length
    return found
