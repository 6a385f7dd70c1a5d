"""What a shim deposits with its keeper, and when the keeper starts a successor."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.shim.deposits import Deposit, Deposits, Message
from runtime.shim.keeper import Keeper
from runtime.shim.loop import EventLoop


class _World:
    """A keeper, and a shim that deposits with it; both on one loop that is turned by hand."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.left = 0
        self.deposits: list[tuple[dict[str, bytes], dict[int, int]]] = []  # that successors got
        self.told: list[tuple[int, int]] = []
        self.keeper = Keeper(self.loop, self._succeed, self._leave)
        self.shim = self.new_shim()

    def new_shim(self) -> Deposits:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.keeper.keep(ours)
        self.socket = theirs
        return Deposits(theirs, self.loop, lambda pid, status: self.told.append((pid, status)))

    def _succeed(self, deposit: Deposit) -> socket.socket:
        self.deposits.append(({key: entry.record for key, entry in deposit.entries.items()}, dict(deposit.statuses)))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket = theirs
        return ours

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


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="not a deposit"):
        Message(b"take\0pod", [])
    with pytest.raises(ValueError, match="not enough values"):
        Message(b"put\0pod", [])
