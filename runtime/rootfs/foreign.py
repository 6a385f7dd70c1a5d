"""Reads a file of a container's rootfs from outside, safe against anything that the image or container put there.

Opening some files has effects before their type can be checked: a watchdog device starts its countdown to a reset, a
terminal becomes the reader's controlling terminal, a FIFO waits for a writer.
"""

from __future__ import annotations

import errno
import os
import stat

from linux.syscalls import open_in_root
from runtime.errors import RuntimeCoreError, failing


class TooLarge(RuntimeCoreError):
    """The file is larger than the caller allows."""


def read_foreign(root: int, path: str, most: int) -> bytes:
    """Read the regular file `path` inside the directory open at `root`; b"" if there is none.

    The caller must have the host's /proc. Raises TooLarge beyond `most` bytes, and OperationFailed.
    """
    with failing("read", path):
        try:
            seen = open_in_root(root, path, os.O_PATH)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return b""
            raise
        try:
            text = _read(seen, most + 1)
        finally:
            os.close(seen)
    if len(text) > most:
        raise TooLarge(f"read `{path}`: larger than {most} bytes")
    return text


def _read(seen: int, most: int) -> bytes:
    """Check the file that is open O_PATH, and then open exactly that file, whatever has its name by now."""
    if not stat.S_ISREG(os.fstat(seen).st_mode):
        return b""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with open(os.open(f"/proc/self/fd/{seen}", flags), "rb") as file:
        return file.read(most)
