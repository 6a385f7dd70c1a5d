"""Finds the processes that serve sessions of earlier crispds, and follows them until they end."""

from __future__ import annotations

import asyncio
import contextlib
import os

from linux.processes import titled


class EarlierProcesses:
    """Those with this title at the time of construction. For an event loop."""

    def __init__(self, title: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._pidfds: set[int] = set()
        for pid in titled(title):
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                self._pidfds.add(pidfd)
                self._loop.add_reader(pidfd, self._forget, pidfd)

    def __len__(self) -> int:
        return len(self._pidfds)

    def close(self) -> None:
        for pidfd in tuple(self._pidfds):
            self._forget(pidfd)

    def _forget(self, pidfd: int) -> None:
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
        self._pidfds.discard(pidfd)
