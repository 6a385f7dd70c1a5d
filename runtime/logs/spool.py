"""Queues bytes on disk, up to a limit, in a file without a name."""

from __future__ import annotations

import os


class Spool:
    """A first-in, first-out queue. Its file holds at most `limit` bytes and vanishes when it is closed."""

    def __init__(self, directory: str, limit: int) -> None:
        """Create the file in `directory`. Raises OSError."""
        path = os.path.join(directory, f".spool-{os.getpid()}-{id(self)}")
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.unlink(path)
        self._limit = limit
        self._taken = 0  # counters since it was last empty; the file is a ring buffer
        self._put = 0

    def __len__(self) -> int:
        return self._put - self._taken

    def put(self, data: memoryview) -> bool:
        """Append the data. Returns False without writing anything if there is no room. Raises OSError."""
        if len(self) + len(data) > self._limit:
            return False
        while data:
            place = self._put % self._limit
            written = os.pwrite(self._fd, data[: self._limit - place], place)
            self._put += written
            data = data[written:]
        return True

    def peek(self, size: int) -> bytes:
        """Return at most `size` of the oldest bytes without removing them. Raises OSError."""
        place = self._taken % self._limit
        return os.pread(self._fd, min(size, len(self), self._limit - place), place)

    def drop(self, size: int) -> None:
        """Remove the `size` oldest bytes."""
        self._taken += size
        if self._taken == self._put:
            self._taken = self._put = 0
            os.ftruncate(self._fd, 0)

    def close(self) -> None:
        os.close(self._fd)
