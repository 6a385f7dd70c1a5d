"""Keeps the bytes of large layers while they come, so that a pull that was interrupted goes on where it was.

partial/<hex of the blob's digest> has a blob's first bytes. The worker that decompresses the layer appends to it and,
in the next pull, reads it before what the registry sends: so the digest covers it, and nothing in it is trusted. The
worker gives it up if the blob comes within seconds.
Nothing is synced either: what a power cut made of it is found in the same way. It stays for an hour if crispd ends in
any way, or if the registry does not answer any more, unless the disk is short. With any other end of its pull it goes.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from image.errors import RegistryUnavailable
from image.shelf.layer_files import explained
from image.tasks import Tasks

LARGE = 32 << 20  # bytes of a blob: to fetch a smaller one again takes little time
KEPT_SECONDS = 3600.0
_TIMES = 8  # a blob's size that have to be free: its layer is several times as large
_SHORT = 0.1  # of the file system is free
_NAME = re.compile(r"[0-9a-f]{64}")


class Partial:
    """The first bytes of a blob, in a file that only this pull has."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self.descriptor = descriptor  # appends, and reads at any place

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def clear(self) -> None:
        """Begin again."""
        os.ftruncate(self.descriptor, 0)

    def finish(self, kept: Path | None) -> None:
        """Give the whole blob the name `kept`, or remove it. Raises ImageError."""
        with explained(f"finish {self._path}"):
            if kept is None:
                self._path.unlink(missing_ok=True)
            else:
                self._path.rename(kept)


class Partials:
    """The partial blobs of one store, in `directory`. Belongs to one event loop."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._taken: set[str] = set()
        self._changing = asyncio.Lock()  # which files there are
        self._closing = False
        self._sweeping: asyncio.TimerHandle | None = None
        self._tasks = Tasks()

    def keep(self) -> None:
        """Keep what there is of cancelled pulls from now on: the store will be closed."""
        self._closing = True

    async def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        await self._tasks.ended()

    @asynccontextmanager
    async def taken(self, digest: str, size: int) -> AsyncIterator[Partial | None]:
        """Provide what is there of a blob, for the time of the context; None if it is not to be kept.

        That is so if it is small, if there is little room, or if another pull has it.
        """
        name = digest.partition(":")[2]
        if size < LARGE or name in self._taken:
            yield None
            return
        self._taken.add(name)
        try:
            async with self._changing:
                partial = await asyncio.to_thread(self._open, name, size)
            if partial is None:
                yield None
                return
            try:
                yield partial
            except BaseException as error:
                if not self._closing and not isinstance(error, RegistryUnavailable):
                    await asyncio.to_thread(partial.finish, None)
                raise
            finally:
                self._sweep_later()
                self._tasks.start(asyncio.to_thread(os.close, partial.descriptor))  # which may free many blocks
        finally:
            self._taken.discard(name)

    def _open(self, name: str, size: int) -> Partial | None:
        path = self._directory / name
        try:
            room = os.statvfs(self._directory)
            if room.f_bavail * room.f_frsize < max(_TIMES * size, _SHORT * room.f_blocks * room.f_frsize):
                path.unlink(missing_ok=True)
                return None
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:  # such as a full disk, which the pull will tell of
            return None
        partial = Partial(path, descriptor)
        if partial.size > size:
            partial.clear()
        return partial

    def _sweep_later(self) -> None:
        if self._sweeping is None:
            loop = asyncio.get_running_loop()
            self._sweeping = loop.call_later(KEPT_SECONDS, lambda: self._tasks.start(self.begin()))

    async def begin(self) -> None:
        """Remove what is too old, and see to the rest later."""
        self._sweeping = None
        await self.sweep()
        if await asyncio.to_thread(self.paths):
            self._sweep_later()

    async def sweep(self) -> None:
        """Remove what nobody has fetched more of for long, and all that no pull has if the disk is short."""
        async with self._changing:
            await asyncio.to_thread(self._sweep, frozenset(self._taken))

    def _sweep(self, taken: frozenset[str]) -> None:
        with suppress(OSError):
            room = os.statvfs(self._directory)
            short = room.f_bavail < _SHORT * room.f_blocks
            oldest = time.time() - KEPT_SECONDS
            for path in self.paths():
                if path.name not in taken:
                    with suppress(FileNotFoundError):
                        if short or not _NAME.fullmatch(path.name) or path.lstat().st_mtime < oldest:
                            path.unlink()

    def paths(self) -> list[Path]:
        """Return the files, which may be in use."""
        return list(self._directory.iterdir())
