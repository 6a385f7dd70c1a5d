"""Keeps what shims deposit (`runtime.shim.deposits`), and starts a successor of a shim that dies.

The keeper is the zygote. It is a subreaper, so what a dead shim was the parent of becomes its child, and it reaps it.

A shim is renewed by a keeper of another version: it deposits there too, and leaves. Then its first keeper, the parent
of its processes, tells the successor of their ends, and does nothing else.

A shim that has nothing to do asks to sleep (`runtime.shim.sleep`). It leaves when a second keeper has its deposit too,
so that neither keeper's death ends the pod. When one of the descriptors that it watched is ready, or the first keeper
dies, it has a successor.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from runtime.light import contextlib, socket
from runtime.logs.writer import complain
from runtime.shim.deposits import (
    CHECK,
    GONE,
    MOST_BYTES,
    MOST_FDS,
    ONLY_TELL,
    OVER,
    SLEEP,
    WHOLE,
    Deposit,
    Entry,
    Message,
    agree_to_sleep,
    tell_end,
    tell_readable,
)
from runtime.shim.estates import PARENTS_KEY, is_connection
from runtime.shim.loop import READ, EventLoop

_RECEIVE: Final = MOST_BYTES + 4096
# A shim that its own state kills would be started for ever.
_MOST_SUCCESSORS: Final = 5
_WITHIN: Final = 60.0  # seconds
_AGAIN_SECONDS: Final = 1.0  # until a fork that has failed is tried again


class Keeper:
    """The deposits of all shims. `succeed` forks a successor and returns the keeper's end of its socket."""

    def __init__(
        self,
        loop: EventLoop,
        succeed: Callable[[Deposit], socket.socket],
        left: Callable[[], None],
        second: Callable[[Mapping[str, Entry], socket.socket, int], None],
        refusal: Callable[[Mapping[str, Entry]], str] = lambda _entries: "",
    ) -> None:
        """`left` is called whenever a shim has left for good.

        `second` gives a copy of a deposit to the second keeper, over one of two sockets: it hands the other one on, at
        whose end that keeper starts a successor. It raises OSError.

        `refusal` says why a successor could not read a deposit, or "".
        """
        self._loop = loop
        self._succeed = succeed
        self._left = left
        self._second = second
        self._refusal = refusal
        self._shims: set[_Shim] = set()
        self._parents: dict[int, _Shim] = {}  # whose record has this pid

    def keeps_pods(self) -> bool:
        """Whether a shim has deposited anything: one without a pod ends with crispd."""
        return any(shim.entries for shim in self._shims)

    def keep(self, keeping: socket.socket, *, renewing: bool = False) -> None:
        """Take deposits from this socket. One that is being renewed has a successor once its deposit is whole."""
        shim = _Shim(keeping, renewing=renewing)
        self._shims.add(shim)
        self._listen(shim)

    def _listen(self, shim: _Shim) -> None:
        shim.keeping.setblocking(False)
        self._loop.watch(shim.keeping.fileno(), READ, lambda _events: self._readable(shim))

    def reaped(self, pid: int, status: int) -> None:
        """Take the status of a child: of one that a dead shim left, or of a shim, whose status nobody needs."""
        shim = self._parents.get(pid)
        if shim is None:
            return
        shim.statuses[pid] = status
        if shim.keeping.fileno() >= 0:
            tell_end(shim.keeping, pid, status)
        elif shim.phase == _Phase.ASLEEP:
            self._wake_later(shim, 0)
        if shim.phase == _Phase.TOLD:
            self._forget(shim, *[key for key, entry in shim.entries.items() if entry.pid == pid])
            if not shim.entries:
                self._part(shim)

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
            if shim.keeping.fileno() < 0:
                return

    def _take(self, shim: _Shim, data: bytes, fds: list[int], *, whole: bool) -> None:
        try:
            message = Message(data, fds)
        except ValueError as error:
            complain(str(error))
            whole, message = False, None
        if shim.phase == _Phase.TRIED:
            shim.phase = _Phase.KEPT
        elif shim.phase == _Phase.ASLEEP:
            if message is not None and message.word == GONE:
                shim.gone = True
                return
            self._stay(shim)
        if not whole or message is None:
            for fd in fds:
                os.close(fd)
            shim.broken = True
            return
        if message.word == CHECK:
            tell_readable(shim.keeping, "it is not complete" if shim.broken else self._refusal(shim.entries))
        elif message.word == WHOLE:
            shim.phase = _Phase.WHOLE
        elif message.word == ONLY_TELL:
            self._only_tell(shim)
        elif message.word == SLEEP and message.entry is not None:
            self._agree(shim, message.key, message.entry.fds)
        elif message.word == OVER:
            self._forget(shim, *shim.entries)
            shim.broken = False
        else:
            self._put(shim, message)

    def _put(self, shim: _Shim, message: Message) -> None:
        self._forget(shim, message.key)
        if (entry := message.entry) is not None:
            shim.entries[message.key] = entry
            if entry.pid:
                self._parents[entry.pid] = shim

    # -- sleep --------------------------------------------------------------------------------------------------------

    def _agree(self, shim: _Shim, number: str, fds: Sequence[int]) -> None:
        """Let the shim sleep, if the second keeper takes its deposit."""
        shim.second, seconds, shim.watched = socket.socket(fileno=fds[0]), fds[1], tuple(fds[2:])
        try:
            if shim.phase == _Phase.KEPT and shim.entries and not shim.broken:
                self._second(shim.entries, shim.second, seconds)
                shim.phase = _Phase.ASLEEP
                agree_to_sleep(shim.keeping, number)
                return
        except OSError as error:
            complain(f"a shim cannot sleep: {error}")
        finally:
            os.close(seconds)
        self._stay(shim)

    def _stay(self, shim: _Shim) -> None:
        """The shim does not sleep after all."""
        if shim.second is not None:
            with contextlib.suppress(OSError):  # it is dead
                shim.second.send(OVER, socket.MSG_DONTWAIT)
        shim.forget_sleep()
        self._forget(shim, *list(filter(is_connection, shim.entries)))  # crispd is to notice the shim's death
        if shim.phase == _Phase.ASLEEP:
            shim.phase = _Phase.KEPT

    def _fall_asleep(self, shim: _Shim) -> None:
        """Watch what the shim has watched, and the processes that were its children: they may be another's now."""
        if shim.statuses:
            self._wake_later(shim, 0)
        for fd in shim.all_watched():
            try:
                self._loop.watch(fd, READ, lambda _events: self._wake(shim))
            except OSError as error:
                complain(f"could not watch for a shim that sleeps: {error}")
                self._wake_later(shim, 0)

    def _wake(self, shim: _Shim) -> None:
        """Start a successor, who tells the second keeper when it has taken over."""
        if shim.phase != _Phase.ASLEEP or shim.keeping.fileno() >= 0:
            return
        for fd in shim.all_watched():
            self._loop.unwatch(fd)
        parents = shim.entries.get(PARENTS_KEY, Entry(0, b"", ()))
        second = (shim.second.fileno(),) if shim.second is not None else ()
        entries = {**shim.entries, PARENTS_KEY: Entry(0, b"", (*parents.fds, *second))}
        try:
            shim.keeping = self._succeed(Deposit(entries, shim.statuses, orderly=True))
        except OSError as error:
            complain(f"could not start the successor of a shim that sleeps: {error}")
            self._wake_later(shim, _AGAIN_SECONDS)
            return
        shim.phase = _Phase.TRIED if second else _Phase.KEPT
        shim.forget_sleep()
        self._listen(shim)

    def _wake_later(self, shim: _Shim, seconds: float) -> None:
        self._loop.later(seconds, lambda: self._wake(shim))

    def deposit_again(self) -> None:
        """Give the deposits of shims that sleep to a new second keeper. The last one is dead."""
        for shim in [one for one in self._shims if one.phase == _Phase.ASLEEP]:
            if shim.keeping.fileno() >= 0:
                self._readable(shim)  # it may have left by now
            if shim.phase != _Phase.ASLEEP:
                continue
            if shim.keeping.fileno() >= 0:
                self._stay(shim)
                continue
            if shim.second is not None:
                shim.second.close()
            shim.second, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                with theirs:
                    self._second(shim.entries, shim.second, theirs.fileno())
            except OSError as error:
                complain(f"a shim that sleeps is woken: {error}")
                self._wake_later(shim, 0)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _only_tell(self, shim: _Shim) -> None:
        """Keep nothing but the pids of processes, until the last of them has ended."""
        shim.phase = _Phase.TOLD
        for key, entry in list(shim.entries.items()):
            entry.close()
            if entry.pid:
                shim.entries[key] = Entry(entry.pid, b"", ())
            else:
                del shim.entries[key]
        if not shim.entries:
            self._part(shim)

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
        if shim.phase == _Phase.ASLEEP:
            if shim.gone:
                self._fall_asleep(shim)
                return
            self._stay(shim)  # it has not left, but died
        deposit = Deposit(shim.entries, shim.statuses, orderly=shim.phase == _Phase.WHOLE)
        if shim.entries and not shim.broken and shim.may_have_successor():
            if shim.phase == _Phase.WHOLE:
                shim.phase = _Phase.TRIED
            try:
                shim.keeping = self._succeed(deposit)
                self._listen(shim)
                return
            except OSError as error:
                complain(f"could not start a shim's successor: {error}")
        if shim.phase == _Phase.KEPT:  # else another keeper has all that
            deposit.kill()
        self._part(shim)

    def _part(self, shim: _Shim) -> None:
        if shim.keeping.fileno() >= 0:
            self._loop.unwatch(shim.keeping.fileno())
            shim.keeping.close()
        self._forget(shim, *list(shim.entries))
        shim.forget_sleep()
        self._shims.discard(shim)
        self._left()


class _Phase:
    """What a shim is to this keeper. In all but the first another keeper has its deposit too."""

    KEPT: Final = "kept"
    COMING: Final = "coming"  # it is renewed by this keeper, and still deposits
    WHOLE: Final = "whole"  # it has deposited everything, and leaves
    TRIED: Final = "tried"  # its successor was started here, and has not said anything yet
    ASLEEP: Final = "asleep"  # it leaves, or has left, until something happens
    TOLD: Final = "told"  # it was renewed by another keeper; this one tells how processes end


class _Shim:
    """A shim's socket, and what it has deposited."""

    def __init__(self, keeping: socket.socket, *, renewing: bool) -> None:
        self.keeping = keeping
        self.phase: str = _Phase.COMING if renewing else _Phase.KEPT
        self.entries: dict[str, Entry] = {}
        self.statuses: dict[int, int] = {}
        self.broken = False  # something of the deposit was lost
        self.watched: tuple[int, ...] = ()  # while it sleeps
        self.second: socket.socket | None = None  # the second keeper starts a successor at its end
        self.gone = False  # it has said that it leaves
        self._successors: list[float] = []

    def all_watched(self) -> tuple[int, ...]:
        """What a successor is started for: what the shim watched, and the ends of its processes."""
        return (*self.watched, *(one.fds[0] for one in self.entries.values() if one.pid and one.fds))

    def forget_sleep(self) -> None:
        self.gone = False
        for fd in self.watched:
            os.close(fd)
        self.watched = ()
        if self.second is not None:
            self.second.close()
            self.second = None

    def may_have_successor(self) -> bool:
        """Count a successor, unless there were many in a short time, or another keeper has to start it."""
        if self.phase not in (_Phase.KEPT, _Phase.WHOLE):
            return False
        now = time.monotonic()
        self._successors = [at for at in self._successors if now - at < _WITHIN]
        self._successors.append(now)
        return len(self._successors) <= _MOST_SUCCESSORS
