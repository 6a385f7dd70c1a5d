"""Bytes that wait on disk: a queue of bounded size in a file without a name."""

from __future__ import annotations

import os


class Spool:
    """First in, first out. The file holds at most `limit` bytes, and is gone with its descriptor."""

    def __init__(self, directory: str, limit: int) -> None:
        """Raises OSError."""
        path = os.path.join(directory, f".spool-{os.getpid()}-{id(self)}")
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.unlink(path)
        self._limit = limit
        self._taken = 0  # bytes since it was last empty; the file is used as a ring
        self._put = 0

    def __len__(self) -> int:
        return self._put - self._taken

    def put(self, data: memoryview) -> bool:
        """Append; False, and nothing is done, when there is no room for it. Raises OSError."""
        if len(self) + len(data) > self._limit:
            return False
        while data:
            place = self._put % self._limit
            written = os.pwrite(self._fd, data[: self._limit - place], place)
            self._put += written
            data = data[written:]
        return True

    def peek(self, size: int) -> bytes:
        """At most so many of the oldest bytes, which stay. Raises OSError."""
        place = self._taken % self._limit
        return os.pread(self._fd, min(size, len(self), self._limit - place), place)

    def drop(self, size: int) -> None:
        """Take away so many of the oldest bytes."""
        self._taken += size
        if self._taken == self._put:
            self._taken = self._put = 0
            os.ftruncate(self._fd, 0)

    def close(self) -> None:
        os.close(self._fd)
