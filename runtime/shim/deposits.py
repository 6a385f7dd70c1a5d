"""Deposits what a shim's successor needs: descriptors and records, each under a key, with the shim's keeper.

A message to the keeper is a datagram, so the keeper has all of it or nothing, and also what a shim sent just before it
was killed. It is answered by nothing. The keeper does not look into records.

    put KEY PID RECORD <descriptors>   keeps them in place of what the key had; PID is a process to outlive us, or 0
    drop KEY
    over                               the shim leaves, and needs no successor
    <- ended PID STATUS                a process of a record, that the keeper has reaped
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from runtime.light import contextlib, signal, socket
from runtime.logs.writer import complain
from runtime.shim.loop import READ, WRITE

MOST_BYTES: Final = 192 << 10  # of a message: less than net.core.wmem_default
MOST_FDS: Final = 253  # SCM_MAX_FD of unix(7)
_MOST_WAITING: Final = 64  # messages for a keeper that does not take them, with some descriptors each
_PUT, _DROP, _OVER, _ENDED = b"put", b"drop", b"over", b"ended"
_SEPARATOR: Final = b"\0"


class Watching(Protocol):
    """The part of the shim's loop that watches a socket."""

    def watch(self, fd: int, events: int, ready: Callable[[int], None]) -> None: ...

    def unwatch(self, fd: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept under a key."""

    pid: int
    record: bytes
    fds: tuple[int, ...]

    def close(self) -> None:
        _close_all(self.fds)


@dataclass(frozen=True, slots=True)
class Deposit:
    """All that a shim left: its entries by key, and exit statuses by pid of those that have ended since."""

    entries: Mapping[str, Entry]
    statuses: Mapping[int, int]

    def kill(self) -> None:
        """Kill the processes that would have outlived the shim."""
        for entry in self.entries.values():
            if entry.pid and entry.fds:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(entry.fds[0], signal.SIGKILL)


class Message:
    """A message that the keeper has received. `entry` is None for one that removes the key, "" means all."""

    __slots__ = ("entry", "key")

    def __init__(self, data: bytes, fds: Sequence[int]) -> None:
        """Raises ValueError."""
        word, _, rest = data.partition(_SEPARATOR)
        self.key, self.entry = "", None
        if word == _PUT:
            key, pid, record = rest.split(_SEPARATOR, 2)
            self.key, self.entry = key.decode(), Entry(int(pid), record, tuple(fds))
        elif word == _DROP:
            self.key = rest.decode()
        elif word != _OVER:
            raise ValueError(f"not a deposit: {data[:80]!r}")


def tell_end(keeping: socket.socket, pid: int, status: int) -> None:
    """Tell a shim how a process ended. If it cannot be told now, it looks for itself."""
    with_status = _SEPARATOR.join((_ENDED, b"%d" % pid, b"%d" % status))
    try:
        keeping.send(with_status, socket.MSG_DONTWAIT)
    except OSError as error:
        complain(f"could not tell a shim of an end: {error}")


class Deposits:
    """The shim's side. Without a keeper the shim has no successor, and nothing else changes.

    The socket stays open as long as the shim lives: its end tells the keeper that the shim is dead.
    """

    def __init__(self, keeper: socket.socket, loop: Watching, ended: Callable[[int, int], None]) -> None:
        """`ended` is called with pid and exit status when the keeper has reaped a process."""
        self._loop = loop
        self._ended = ended
        self._waiting: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._begun = False
        self._meet(keeper)

    def _meet(self, keeper: socket.socket) -> None:
        self._keeper = keeper
        keeper.setblocking(False)
        self._watch()

    @property
    def kept(self) -> bool:
        """Whether there is a keeper who would start a successor."""
        return self._begun and self._keeper.fileno() >= 0

    def notice_end(self) -> None:
        """Notice now, and not only in the loop, if the keeper is dead."""
        if self._keeper.fileno() >= 0:
            self._receive()

    def begin(self, keeper: socket.socket | None = None) -> None:
        """Deposit from now on, with a new keeper if there is one. The caller puts everything there."""
        self._begun = True
        if keeper is not None:
            self.over()
            self._meet(keeper)

    def put(self, key: str, record: bytes, fds: Sequence[int] = (), pid: int = 0) -> None:
        """Keep copies of the descriptors, in place of what the key had. The first is the pidfd of `pid`, unless 0."""
        if not self.kept:
            return
        data = _SEPARATOR.join((_PUT, key.encode(), b"%d" % pid, record))
        if len(data) > MOST_BYTES or len(fds) > MOST_FDS:
            self._give_up(f"{key} has {len(data)} bytes and {len(fds)} descriptors, which are too many")
        else:
            self._send(data, fds)

    def _give_up(self, reason: str) -> None:
        """Have no successor from now on: half a deposit is worse than none, for it tells what is not so."""
        complain(f"this shim will have no successor: {reason}")
        self._begun = False
        self._send(_OVER)

    def drop(self, key: str) -> None:
        if self.kept:
            self._send(_SEPARATOR.join((_DROP, key.encode())))

    def over(self) -> None:
        """Say that no successor is needed, and close the socket."""
        if self._keeper.fileno() >= 0:
            self._send(_OVER)
            self._close()

    def _send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        if self._waiting:
            self._wait(data, fds)
            return
        try:
            socket.send_fds(self._keeper, [data], list(fds))
        except BlockingIOError:  # somebody has stopped the keeper
            self._wait(data, fds)
        except ConnectionError:
            self._close()
        except OSError as error:
            if data == _OVER:
                raise  # without descriptors there is no reason for it
            self._give_up(f"{data[:80]!r}: {error}")

    def _wait(self, data: bytes, fds: Sequence[int]) -> None:
        if len(self._waiting) > _MOST_WAITING and data != _OVER:
            self._give_up("its keeper takes nothing")
            return
        self._waiting.append((data, tuple(os.dup(fd) for fd in fds)))
        self._watch()

    def _watch(self) -> None:
        events = READ | (WRITE if self._waiting else 0)
        self._loop.watch(self._keeper.fileno(), events, self._ready)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & READ and self._keeper.fileno() >= 0:
            self._receive()

    def _flush(self) -> None:
        try:
            while self._waiting:
                data, fds = self._waiting[0]
                socket.send_fds(self._keeper, [data], list(fds))
                self._waiting.popleft()
                _close_all(fds)
        except BlockingIOError:
            return
        except OSError:
            self._close()
            return
        self._watch()

    def _receive(self) -> None:
        try:
            data = self._keeper.recv(256)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        word, _, rest = data.partition(_SEPARATOR)
        if word == _ENDED:
            pid, _, status = rest.partition(_SEPARATOR)
            self._ended(int(pid), int(status))
        elif not data:
            self._close()

    def _close(self) -> None:
        if self._keeper.fileno() >= 0:
            self._loop.unwatch(self._keeper.fileno())
            self._keeper.close()
        for _data, fds in self._waiting:
            _close_all(fds)
        self._waiting.clear()


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
