"""Keeps what shims deposit (`runtime.shim.deposits`), and starts a successor of a shim that dies.

The keeper is the zygote. It is a subreaper, so what a dead shim was the parent of becomes its child, and it reaps it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from runtime.light import socket
from runtime.logs.writer import complain
from runtime.shim.deposits import MOST_BYTES, MOST_FDS, Deposit, Entry, Message, tell_end
from runtime.shim.loop import READ, EventLoop

_RECEIVE: Final = MOST_BYTES + 4096
# A shim that its own state kills would be started for ever.
_MOST_SUCCESSORS: Final = 5
_WITHIN: Final = 60.0  # seconds


class Keeper:
    """The deposits of all shims. `succeed` forks a successor and returns the keeper's end of its socket."""

    def __init__(self, loop: EventLoop, succeed: Callable[[Deposit], socket.socket], left: Callable[[], None]) -> None:
        """`left` is called whenever a shim has left for good."""
        self._loop = loop
        self._succeed = succeed
        self._left = left
        self._shims: set[_Shim] = set()
        self._parents: dict[int, _Shim] = {}  # whose record has this pid

    def keeps_pods(self) -> bool:
        """Whether a shim has deposited anything: one without a pod ends with crispd."""
        return any(shim.entries for shim in self._shims)

    def keep(self, keeping: socket.socket) -> None:
        """Take deposits from this socket."""
        shim = _Shim(keeping)
        self._shims.add(shim)
        self._listen(shim)

    def _listen(self, shim: _Shim) -> None:
        shim.keeping.setblocking(False)
        self._loop.watch(shim.keeping.fileno(), READ, lambda _events: self._readable(shim))

    def reaped(self, pid: int, status: int) -> None:
        """Take the status of a child: of one that a dead shim left, or of a shim, whose status nobody needs."""
        shim = self._parents.get(pid)
        if shim is not None:
            shim.statuses[pid] = status
            tell_end(shim.keeping, pid, status)

    def _readable(self, shim: _Shim) -> None:
        while True:
            try:
                data, fds, flags, _address = socket.recv_fds(shim.keeping, _RECEIVE, MOST_FDS, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except ConnectionResetError:  # it has not read all that it was told; what it has sent comes after this
                continue
            except OSError as error:
                complain(f"could not receive a deposit: {error}")
                data, fds, flags = b"", [], 0
            if not data:
                self._ended(shim)
                return
            self._take(shim, data, fds, whole=not flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC))

    def _take(self, shim: _Shim, data: bytes, fds: list[int], *, whole: bool) -> None:
        try:
            message = Message(data, fds)
        except ValueError as error:
            complain(str(error))
            whole, message = False, None
        if not whole or message is None:
            for fd in fds:
                os.close(fd)
            shim.broken = True
            return
        if not message.key:
            self._forget(shim, *shim.entries)
            shim.broken = False
            return
        self._forget(shim, message.key)
        if (entry := message.entry) is not None:
            shim.entries[message.key] = entry
            if entry.pid:
                self._parents[entry.pid] = shim

    def _forget(self, shim: _Shim, *keys: str) -> None:
        for key in keys:
            if (entry := shim.entries.pop(key, None)) is not None:
                entry.close()
                shim.statuses.pop(entry.pid, None)
                if self._parents.get(entry.pid) is shim:
                    del self._parents[entry.pid]

    def _ended(self, shim: _Shim) -> None:
        """The shim is dead, and all that it has sent is received."""
        self._loop.unwatch(shim.keeping.fileno())
        shim.keeping.close()
        deposit = Deposit(shim.entries, shim.statuses)
        if shim.entries and not shim.broken and shim.may_have_successor():
            try:
                shim.keeping = self._succeed(deposit)
                self._listen(shim)
                return
            except OSError as error:
                complain(f"could not start a shim's successor: {error}")
        deposit.kill()
        self._forget(shim, *list(shim.entries))
        self._shims.discard(shim)
        self._left()


class _Shim:
    """A shim's socket, and what it has deposited."""

    def __init__(self, keeping: socket.socket) -> None:
        self.keeping = keeping
        self.entries: dict[str, Entry] = {}
        self.statuses: dict[int, int] = {}
        self.broken = False  # something of the deposit was lost
        self._successors: list[float] = []

    def may_have_successor(self) -> bool:
        """Count a successor, unless there were many in a short time."""
        now = time.monotonic()
        self._successors = [at for at in self._successors if now - at < _WITHIN]
        self._successors.append(now)
        return len(self._successors) <= _MOST_SUCCESSORS
