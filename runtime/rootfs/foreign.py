"""Reading a file of a container's rootfs from outside of it, whatever the image or the container has put there.

The kernel acts on some files when they are opened, before anybody can look what they are: a watchdog's device starts to
count down to the machine's reset, a terminal becomes the reader's own, a FIFO waits for a writer.
"""

from __future__ import annotations

import errno
import os
import stat

from linux.syscalls import open_in_root
from runtime.errors import RuntimeCoreError, failing


class TooLarge(RuntimeCoreError):
    """The file is larger than who asked takes."""


def read_foreign(root: int, path: str, most: int) -> bytes:
    """The regular file `path` inside the directory open at `root`; nothing where there is none.

    The caller sees the host's /proc. Raises TooLarge beyond `most` bytes, OperationFailed.
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
    """Of what is open O_PATH: looked at first, and then that very file opened, not what has its name by now."""
    if not stat.S_ISREG(os.fstat(seen).st_mode):
        return b""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with open(os.open(f"/proc/self/fd/{seen}", flags), "rb") as file:
        return file.read(most)
