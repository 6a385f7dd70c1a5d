"""Deposits what a shim's successor needs: descriptors and records, each under a key, with the shim's keeper.

A message to the keeper is a datagram, so the keeper has all of it or nothing, and also what a shim sent just before it
was killed. It is answered by nothing. The keeper does not look into records.

    put KEY PID RECORD <descriptors>   keeps them in place of what the key had; PID is a process to outlive us, or 0
    drop KEY
    over                               the shim leaves, and needs no successor
    check                              asked of a new keeper, of whose version the successor is to be
    <- readable REASON                 the answer: why it cannot read the deposit, or nothing
    whole                              from now on the shim has a successor there
    only-tell                          another keeper has all that; this one still is the parent of processes
    sleep NUMBER <descriptors>         asks the keeper to start a successor when one of them is ready. The first two
                                       are a pair of sockets, for this keeper and a second one, which has a successor
                                       at its end
    <- asleep NUMBER PID               the answer, with the keeper's pid: it watches as soon as the shim has left
    awake                              the shim stays after all
    gone                               the shim has left: the last that it says
    <- ended PID STATUS                a process of a record, that the keeper has reaped
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from runtime.light import contextlib, signal, socket
from runtime.logs.writer import complain
from runtime.shim.loop import READ, WRITE

MOST_BYTES: Final = 192 << 10  # of a message: less than net.core.wmem_default
MOST_FDS: Final = 253  # SCM_MAX_FD of unix(7)
_MOST_WAITING: Final = 64  # messages for a keeper that does not take them, with some descriptors each
PUT, DROP, OVER, CHECK, WHOLE, ONLY_TELL = b"put", b"drop", b"over", b"check", b"whole", b"only-tell"
SLEEP, AWAKE, GONE = b"sleep", b"awake", b"gone"
_ENDED, _READABLE, _ASLEEP = b"ended", b"readable", b"asleep"
_SEPARATOR: Final = b"\0"
_KEYLESS: Final = frozenset((OVER, CHECK, WHOLE, ONLY_TELL, AWAKE, GONE))
_RENEWAL_SECONDS: Final = 5.0  # for a keeper to answer


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
    orderly: bool  # it has left because it had nothing to do, or for another version

    def kill(self) -> None:
        """Kill the processes that would have outlived the shim."""
        for entry in self.entries.values():
            if entry.pid and entry.fds:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(entry.fds[0], signal.SIGKILL)


class Message:
    """A message that the keeper has received. `entry` is what PUT keeps under the key, or has SLEEP's descriptors."""

    __slots__ = ("entry", "key", "word")

    def __init__(self, data: bytes, fds: Sequence[int]) -> None:
        """Raises ValueError."""
        self.word, _, rest = data.partition(_SEPARATOR)
        self.key, self.entry = "", None
        if self.word == PUT:
            key, pid, record = rest.split(_SEPARATOR, 2)
            self.key, self.entry = key.decode(), Entry(int(pid), record, tuple(fds))
        elif self.word == DROP:
            self.key = rest.decode()
        elif self.word == SLEEP:
            self.key, self.entry = rest.decode(), Entry(0, b"", tuple(fds))  # the key is the question's number
        elif self.word not in _KEYLESS:
            raise ValueError(f"not a deposit: {data[:80]!r}")


def tell_end(keeping: socket.socket, pid: int, status: int) -> None:
    """Tell a shim how a process ended. If it cannot be told now, it looks for itself."""
    with_status = _SEPARATOR.join((_ENDED, b"%d" % pid, b"%d" % status))
    try:
        keeping.send(with_status, socket.MSG_DONTWAIT)
    except OSError as error:
        complain(f"could not tell a shim of an end: {error}")


def read_end(data: bytes) -> tuple[int, int] | None:
    """Return pid and exit status of a process whose end the keeper tells."""
    word, _, rest = data.partition(_SEPARATOR)
    if word != _ENDED:
        return None
    pid, _, status = rest.partition(_SEPARATOR)
    return int(pid), int(status)


def tell_readable(keeping: socket.socket, refusal: str) -> None:
    """Answer CHECK."""
    with contextlib.suppress(OSError):  # the shim has waited too long
        keeping.send(_SEPARATOR.join((_READABLE, refusal.encode())), socket.MSG_DONTWAIT)


def agree_to_sleep(keeping: socket.socket, number: str) -> None:
    """Answer the SLEEP with this number. Raises OSError."""
    keeping.send(_SEPARATOR.join((_ASLEEP, number.encode(), b"%d" % os.getpid())), socket.MSG_DONTWAIT)


class NewKeeper:
    """Another keeper that takes a shim's deposit: of another version, for a successor of that version, or a second one.

    Until it has been told that the deposit is whole, nothing comes of it. Waits for the keeper.
    """

    def __init__(self, sock: socket.socket, seconds: float = _RENEWAL_SECONDS) -> None:
        sock.settimeout(seconds)
        self._sock = sock

    def take(self, data: bytes, fds: Sequence[int]) -> None:
        """Raises OSError."""
        socket.send_fds(self._sock, [data], list(fds))

    def put(self, key: str, record: bytes, fds: Sequence[int], pid: int = 0) -> None:
        """Raises OSError."""
        self.take(_put(key, pid, record), fds)

    def check(self) -> str:
        """Return why the keeper's version cannot read the deposit, or "". Raises OSError."""
        self.take(CHECK, ())
        word, _, reason = self._sock.recv(4096).partition(_SEPARATOR)
        return reason.decode() if word == _READABLE else "it is gone"

    def whole(self) -> None:
        """From now on the keeper starts a successor as soon as the shim is gone. Raises OSError."""
        self.take(WHOLE, ())


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
        self._aside: Callable[[bytes, Sequence[int]], None] | None = None
        self._agreed: Callable[[int], None] = lambda _keeper: None
        self._questions = 0
        self._tie: socket.socket | None = None  # what the keeper has to the second one: without an end while we live
        self._meet(keeper)

    def _meet(self, keeper: socket.socket) -> None:
        self._keeper = keeper
        keeper.setblocking(False)
        self._watch()

    @property
    def keeper(self) -> socket.socket:
        """The shim's end of the socket; closed if the keeper is dead."""
        return self._keeper

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

    @contextlib.contextmanager
    def aside(self, take: Callable[[bytes, Sequence[int]], None]) -> Iterator[None]:
        """Let something else than the keeper take what is put meanwhile."""
        self._aside = take
        try:
            yield
        finally:
            self._aside = None

    def put(self, key: str, record: bytes, fds: Sequence[int] = (), pid: int = 0) -> None:
        """Keep copies of the descriptors, in place of what the key had. The first is the pidfd of `pid`, unless 0."""
        if not self.kept:
            return
        data = _put(key, pid, record)
        if self._aside is not None:
            self._aside(data, fds)
        elif len(data) > MOST_BYTES or len(fds) > MOST_FDS:
            self._give_up(f"{key} has {len(data)} bytes and {len(fds)} descriptors, which are too many")
        else:
            self._send(data, fds)

    def _give_up(self, reason: str) -> None:
        """Have no successor from now on: half a deposit is worse than none, for it tells what is not so."""
        complain(f"this shim will have no successor: {reason}")
        self._begun = False
        self._send(OVER)

    def drop(self, key: str) -> None:
        if self.kept:
            self._send(_SEPARATOR.join((DROP, key.encode())))

    @property
    def up_to_date(self) -> bool:
        """Whether the keeper has taken everything."""
        return self.kept and not self._waiting

    def sleep(self, watched: Sequence[int], agreed: Callable[[int], None]) -> None:
        """Ask the keeper to start a successor when one of these is ready. `agreed` gets its pid if it will."""
        self._untie()  # the last question was not answered
        if self.kept:
            self._questions += 1
            self._agreed = agreed
            self._tie, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                ends = (self._tie.fileno(), theirs.fileno())
                self._send(_SEPARATOR.join((SLEEP, b"%d" % self._questions)), (*ends, *watched))

    def awake(self) -> None:
        """Stay, although the keeper has agreed."""
        self._untie()
        if self.kept:
            self._send(AWAKE)

    def gone(self) -> bool:
        """Say that the shim has left. Return False if that cannot be said."""
        try:
            return self._keeper.send(GONE, socket.MSG_DONTWAIT) > 0
        except OSError:
            return False

    def _untie(self) -> None:
        """Tell a second keeper that has a copy of the deposit that the shim is there."""
        if self._tie is not None:
            with contextlib.suppress(OSError):  # it is dead
                self._tie.send(OVER, socket.MSG_DONTWAIT)
            self._tie.close()
            self._tie = None

    def over(self) -> None:
        """Say that no successor is needed, and close the socket."""
        if self._keeper.fileno() >= 0:
            self._send(OVER)
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
            if data == OVER:
                raise  # without descriptors there is no reason for it
            self._give_up(f"{data[:80]!r}: {error}")

    def _wait(self, data: bytes, fds: Sequence[int]) -> None:
        if len(self._waiting) > _MOST_WAITING and data != OVER:
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
        if not data:
            self._close()
        elif data.startswith(_ASLEEP):
            _word, number, pid = data.split(_SEPARATOR)
            if int(number) == self._questions:
                self._agreed(int(pid))
        elif (end := read_end(data)) is not None:
            self._ended(*end)

    def _close(self) -> None:
        if self._keeper.fileno() >= 0:
            self._loop.unwatch(self._keeper.fileno())
            self._keeper.close()
        for _data, fds in self._waiting:
            _close_all(fds)
        self._waiting.clear()
        self._untie()


def _put(key: str, pid: int, record: bytes) -> bytes:
    return _SEPARATOR.join((PUT, key.encode(), b"%d" % pid, record))


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
