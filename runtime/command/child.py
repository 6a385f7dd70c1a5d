"""Our own child on its way to its program, and the one that it may bear for that (`runtime.process.bear`)."""

from __future__ import annotations

import contextlib
import os

from runtime.light import signal


class Child:
    """`pid` and `pidfd`, the caller's to close, are those of whoever is to be the program, as far as is known."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._parents: list[int] = []  # they end, and are ours to reap

    def replaced(self, pid: int, pidfd: int) -> None:
        """It has borne that process, which is a child of ours too, and ends."""
        before = self.pidfd
        self._parents.append(self.pid)
        self.pid, self.pidfd = pid, pidfd
        os.close(before)

    def reap_parents(self) -> None:
        while self._parents:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._parents.pop(), 0)

    def end(self) -> None:
        """SIGKILL all there is, and reap it."""
        for pid in (*self._parents, self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # nobody else has its number before it is reaped
        self.reap_parents()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self.pidfd)
