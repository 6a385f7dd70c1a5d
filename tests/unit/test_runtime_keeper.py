"""What a shim deposits with its keeper, and when the keeper starts a successor."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from runtime.shim.deposits import OVER, Deposit, Deposits, Entry, Message, NewKeeper
from runtime.shim.estates import PARENTS_KEY, connection_key
from runtime.shim.keeper import Keeper
from runtime.shim.loop import EventLoop


class _World:
    """A keeper, and a shim that deposits with it; both on one loop that is turned by hand."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.left = 0
        self.deposits: list[tuple[dict[str, bytes], dict[int, int]]] = []  # that successors got
        self.told: list[tuple[int, int]] = []
        self.orderly: list[bool] = []
        self.copies: list[dict[str, bytes]] = []  # that second keepers got
        self.second: socket.socket  # the end that a second keeper has of the last copy's socket
        self.refused = False  # nobody can be a second keeper
        self.keeper = Keeper(self.loop, self._succeed, self._leave, self._deposit_twice)
        self.shim = self.new_shim()

    def new_shim(self) -> Deposits:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.keeper.keep(ours)
        self.socket = theirs
        return Deposits(theirs, self.loop, lambda pid, status: self.told.append((pid, status)))

    def _succeed(self, deposit: Deposit) -> socket.socket:
        self.orderly.append(deposit.orderly)
        self.deposits.append(({key: entry.record for key, entry in deposit.entries.items()}, dict(deposit.statuses)))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket = theirs
        return ours

    def _deposit_twice(self, entries: Mapping[str, Entry], _ours: socket.socket, theirs: int) -> None:
        if self.refused:
            raise OSError("no more processes")
        self.copies.append({key: entry.record for key, entry in entries.items()})
        self.second = socket.socket(fileno=os.dup(theirs))
        self.second.settimeout(1)

    def _leave(self) -> None:
        self.left += 1

    def turn(self) -> None:
        """Let both handle what is there."""
        self.loop.later(0.05, self.loop.stop)
        self.loop.run()
        self.loop._stopped = False

    def die(self) -> None:
        """What the kernel does for a killed shim."""
        if self.socket.fileno() >= 0:
            self.loop.unwatch(self.socket.fileno())
            self.socket.close()


@pytest.fixture
def world() -> Iterator[_World]:
    yield _World()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def test_a_successor_gets_what_was_deposited_last(world: _World, tmp_path: Path) -> None:
    world.shim.begin()
    with open(tmp_path / "file", "w") as file:
        world.shim.put("pod", b"first", [file.fileno()])
        world.shim.put("pod", b"second", [file.fileno()])
        world.shim.put("container a", b"{}")
        world.shim.put("container b", b"{}")
        world.shim.drop("container a")
    world.die()  # with everything unread
    world.turn()
    assert world.deposits == [({"pod": b"second", "container b": b"{}"}, {})]
    held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) > 2 and _is_open(fd)]
    assert held.count(str(tmp_path / "file")) == 1
    assert not world.left


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


@pytest.mark.parametrize("unread", [False, True])
def test_a_shim_that_leaves_has_no_successor(world: _World, unread: bool) -> None:
    """Even one that has not read all that it was told: its socket is reset then."""
    world.shim.begin()
    world.shim.put("pod", b"{}", pid=12345)
    world.turn()
    world.loop.unwatch(world.socket.fileno())
    if unread:
        world.keeper.reaped(12345, 7)
    world.shim.over()
    world.turn()
    assert (world.deposits, world.left) == ([], 1)


def test_a_shim_that_has_deposited_nothing_has_no_successor(world: _World) -> None:
    world.shim.put("pod", b"{}")  # not begun: crispd has not said that it has the pod
    world.die()
    world.turn()
    assert (world.deposits, world.left) == ([], 1)


def test_an_end_is_told_to_the_shim_and_to_its_successor(world: _World) -> None:
    world.shim.begin()
    world.shim.put("container a", b"{}", pid=12345)
    world.turn()
    world.keeper.reaped(12345, -9)
    world.turn()
    assert world.told == [(12345, -9)]
    world.die()
    world.turn()
    assert world.deposits == [({"container a": b"{}"}, {12345: -9})]


def test_successors_are_not_started_for_ever(world: _World) -> None:
    world.shim.begin()
    world.shim.put("pod", b"{}")
    for _ in range(8):
        world.die()
        world.turn()
    assert len(world.deposits) == 5
    assert world.left == 1


def test_a_keeper_that_takes_nothing_gets_everything_later(world: _World) -> None:
    """Somebody has stopped it; the shim does not wait."""
    world.shim.begin()
    count = 0
    while not world.shim._waiting or len(world.shim._waiting) < 50:
        world.shim.put(f"container {count}", b"x" * 200)
        count += 1
    while world.shim._waiting:
        world.turn()
    assert world.shim.kept
    world.die()
    world.turn()
    assert len(world.deposits[0][0]) == count


def test_a_keeper_that_takes_nothing_for_too_long_is_told_to_start_no_successor(world: _World) -> None:
    world.shim.begin()
    for number in range(5000):
        world.shim.put(f"container {number}", b"x" * 200)
    assert not world.shim.kept
    while world.shim._waiting:
        world.turn()
    world.die()
    world.turn()
    assert (world.deposits, world.left) == ([], 1)


def test_a_deposit_that_is_too_large_is_none(world: _World) -> None:
    world.shim.begin()
    world.shim.put("pod", b"{}")
    world.shim.put("container a", b"x" * (1 << 20))
    assert not world.shim.kept
    world.die()
    world.turn()
    assert (world.deposits, world.left) == ([], 1)


def test_a_new_keeper(world: _World) -> None:
    world.shim.begin()
    world.shim.put("pod", b"{}")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    world.keeper.keep(ours)
    world.shim.begin(theirs)
    world.shim.put("pod", b"again")
    world.turn()
    assert (world.deposits, world.left) == ([], 1)  # the first has nothing more to do with it
    world.socket = theirs
    world.die()
    world.turn()
    assert world.deposits == [({"pod": b"again"}, {})]


class _Renewal:
    """A shim of the world that is renewed: the first keeper, which is the world's, and a new one, both on its loop."""

    def __init__(self, world: _World) -> None:
        self.world = world
        self.successors: list[dict[str, bytes]] = []  # of the new keeper's
        self.unreadable = ""
        self.left = 0
        self.keeper = Keeper(
            world.loop, self._succeed, self._leave, world._deposit_twice, lambda _entries: self.unreadable
        )
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.keeper.keep(ours, renewing=True)
        self.new = NewKeeper(self.socket)
        world.shim.begin()
        world.shim.put("pod", b"old", pid=12345)
        world.turn()

    def _succeed(self, deposit: Deposit) -> socket.socket:
        self.successors.append({key: entry.record for key, entry in deposit.entries.items()})
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return ours

    def _leave(self) -> None:
        self.left += 1

    def put(self) -> None:
        with self.world.shim.aside(self.new.take):
            self.world.shim.put("pod", b"whole", pid=12345)
        self.new.put("parents", b"", [self.world.socket.fileno()])

    def die(self) -> None:
        """What the kernel does for a shim that has left, or for its successor."""
        self.world.die()
        self.socket.close()
        self.world.turn()


@pytest.fixture
def renewal(world: _World) -> _Renewal:
    return _Renewal(world)


def test_a_shim_that_dies_before_its_deposit_is_whole_is_its_first_keepers(world: _World, renewal: _Renewal) -> None:
    renewal.put()
    renewal.die()
    assert (renewal.successors, renewal.left) == ([], 1)
    assert world.deposits == [({"pod": b"old"}, {})]


def test_a_shim_whose_deposit_is_whole_is_its_new_keepers(world: _World, renewal: _Renewal) -> None:
    renewal.put()
    renewal.new.whole()
    renewal.die()
    assert renewal.successors == [{"pod": b"whole", "parents": b""}]
    assert world.deposits == []  # its socket is in the deposit
    Deposits(renewal.socket, world.loop, lambda _pid, _status: None).begin()
    renewal.socket.send(b"drop\0connection 0")
    world.turn()
    for _ in range(2):
        renewal.die()
    assert len(renewal.successors) == 3  # that is as for any other
    assert world.deposits == []


def test_a_successor_that_says_nothing_is_given_back(world: _World, renewal: _Renewal) -> None:
    renewal.put()
    renewal.new.whole()
    renewal.die()
    renewal.die()
    assert (len(renewal.successors), renewal.left) == (1, 1)
    world.turn()
    assert world.deposits == [({"pod": b"old"}, {})]


def test_records_that_the_new_version_cannot_read(world: _World, renewal: _Renewal) -> None:
    def checked() -> str:
        answer = concurrent.futures.ThreadPoolExecutor().submit(renewal.new.check)
        world.turn()
        return answer.result()

    renewal.put()
    assert checked() == ""
    renewal.unreadable = "record of 'pod': it is from the future"
    assert checked() == renewal.unreadable
    renewal.socket.send(b"nonsense")
    assert checked() == "it is not complete"


def test_a_first_keeper_that_is_nothing_but_a_parent(world: _World) -> None:
    """It tells of ends, keeps no descriptors, and leaves after the last; nobody's death matters to it."""
    world.shim.begin()
    with open("/dev/null") as file:
        world.shim.put("journal", b"", [file.fileno()])
        for number in (1, 2):
            world.shim.put(f"container {number}", b"{}", [file.fileno()], pid=12340 + number)
    world.turn()
    before = len(os.listdir("/proc/self/fd"))
    world.socket.send(b"only-tell")
    world.turn()
    assert len(os.listdir("/proc/self/fd")) == before - 3
    world.keeper.reaped(12342, 9)
    assert world.keeper.keeps_pods()
    world.keeper.reaped(12341, -9)
    assert not world.keeper.keeps_pods()
    assert world.left == 1
    world.turn()
    assert world.told == [(12342, 9), (12341, -9)]
    assert world.deposits == []


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="not a deposit"):
        Message(b"take\0pod", [])
    with pytest.raises(ValueError, match="not enough values"):
        Message(b"put\0pod", [])


class _Sleeper:
    """A shim with a process, which watches the reading end of a pipe and has asked to sleep."""

    def __init__(self, world: _World) -> None:
        self.world = world
        self.agreed: list[int] = []
        self.reader, self.writer = os.pipe()
        world.shim.begin()
        world.shim.put("pod", b"{}", pid=12345)
        world.shim.put(connection_key(0), b"{}", [self.writer])
        world.turn()
        world.shim.sleep([self.reader], self.agreed.append)
        world.turn()

    def leave(self) -> None:
        if self.agreed:
            assert self.world.shim.gone()
            self.world.shim._tie.close()  # as its exit does
        self.world.die()
        self.world.turn()


def test_a_shim_that_sleeps_has_a_successor_when_what_it_watched_is_ready(world: _World) -> None:
    sleeper = _Sleeper(world)
    assert (sleeper.agreed, world.copies) == ([os.getpid()], [{"pod": b"{}", connection_key(0): b"{}"}])
    sleeper.leave()
    assert not world.deposits
    os.write(sleeper.writer, b"a line")
    world.turn()
    assert [set(entries) for entries, _statuses in world.deposits] == [{"pod", connection_key(0), PARENTS_KEY}]
    assert world.orderly == [True]
    assert os.read(sleeper.reader, 10) == b"a line"  # the keeper has not
    assert world.second.recv(100) == b""  # only the successor would have its end


def test_a_shim_that_sleeps_has_a_successor_when_a_process_ends(world: _World) -> None:
    sleeper = _Sleeper(world)
    sleeper.leave()
    world.keeper.reaped(12345, 7)
    world.turn()
    assert [statuses for _entries, statuses in world.deposits] == [{12345: 7}]


def test_a_process_that_ends_while_its_shim_leaves(world: _World) -> None:
    sleeper = _Sleeper(world)
    world.keeper.reaped(12345, 7)
    sleeper.leave()
    assert [statuses for _entries, statuses in world.deposits] == [{12345: 7}]


def test_a_shim_that_stays_after_all(world: _World) -> None:
    _Sleeper(world)
    world.shim.awake()
    world.turn()
    assert world.second.recv(100) == OVER
    world.die()
    world.turn()
    assert world.deposits == [({"pod": b"{}"}, {})]  # who was connected is to notice its death
    assert world.orderly == [False]


def test_a_shim_does_not_sleep_without_a_second_keeper(world: _World) -> None:
    world.refused = True
    sleeper = _Sleeper(world)
    assert not sleeper.agreed
    sleeper.leave()
    assert world.deposits == [({"pod": b"{}"}, {})]


@pytest.mark.parametrize("refused", [False, True])
def test_a_second_keeper_that_dies_has_a_successor_or_shims_wake(world: _World, refused: bool) -> None:
    _Sleeper(world).leave()
    world.refused = refused
    world.keeper.deposit_again()
    world.turn()
    assert (len(world.copies), len(world.deposits)) == ((1, 1) if refused else (2, 0))


def test_a_second_keeper_starts_nobody_while_the_shim_lives(world: _World) -> None:
    """Though the first keeper dies after it has agreed: the shim has the other end of its socket too."""
    _Sleeper(world)
    (kept,) = world.keeper._shims
    world.loop.unwatch(kept.keeping.fileno())
    kept.keeping.close()
    assert kept.second is not None
    kept.second.close()
    with pytest.raises(TimeoutError):
        world.second.recv(100)
    world.turn()
    assert world.second.recv(100) == OVER
