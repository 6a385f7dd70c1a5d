"""Hears of the ends of processes that earlier keepers are the parents of: those of shims that were renewed.

Before Linux 6.15 a parent alone can tell how its child ended; since then the kernel tells everybody, and earlier
keepers are let go.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from linux.credentials import peer_pid
from linux.exit_status import tells_everybody
from runtime.light import contextlib, socket
from runtime.shim.deposits import ONLY_TELL, OVER, Deposits, Watching, read_end
from runtime.shim.estates import PARENTS_KEY
from runtime.shim.loop import READ


class Parents:
    """Sockets of earlier keepers. `ended` is called with pid and exit status of a process that one has reaped."""

    def __init__(self, loop: Watching, deposits: Deposits, ended: Callable[[int, int], None]) -> None:
        self._loop = loop
        self._deposits = deposits
        self._ended = ended
        self._sockets: list[socket.socket] = []

    def fds(self) -> list[int]:
        """Return the descriptors of the sockets, and of that of the present keeper."""
        present = self._deposits.keeper.fileno()
        return [*(one.fileno() for one in self._sockets), *([present] if present >= 0 else [])]

    @property
    def tell_ends(self) -> bool:
        """Whether the ends of all processes would be told if the shim left."""
        if tells_everybody():
            return True
        present = self._deposits.keeper
        if present.fileno() < 0:
            return False
        return peer_pid(present) == os.getppid()

    def succeed(self, fds: Sequence[int]) -> None:
        """Take over the sockets of an earlier shim."""
        for fd in fds:
            one = socket.socket(fileno=fd)
            one.setblocking(False)
            self._sockets.append(one)
            self._watch(one)

    def _watch(self, one: socket.socket) -> None:
        self._loop.watch(one.fileno(), READ, lambda _events: self._ready(one))

    def settle(self) -> None:
        """Tell the keepers that they are nothing but parents now. Until then they could start a successor too."""
        if not self._sockets:
            return
        everybody = tells_everybody()
        for one in self._sockets.copy():
            with contextlib.suppress(OSError):  # it is dead
                one.send(OVER if everybody else ONLY_TELL)
            if everybody:
                self._leave(one)

    def deposit(self) -> None:
        """Deposit the sockets, if there are any."""
        if self._sockets:
            self._deposits.put(PARENTS_KEY, b"", [one.fileno() for one in self._sockets])

    def _ready(self, one: socket.socket) -> None:
        try:
            data = one.recv(256)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            if (end := read_end(data)) is not None:
                self._ended(*end)
            return
        self._leave(one)

    def _leave(self, one: socket.socket) -> None:
        self._loop.unwatch(one.fileno())
        one.close()
        self._sockets.remove(one)
        self._deposits.drop(PARENTS_KEY)
        self.deposit()
