"""What touches files of others: one that hangs holds up nothing else, and is told of."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pods import foreign_files
from pods.errors import ResourceExhausted, Unavailable
from tests.waiting import eventually


async def test_results_and_errors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_files, "_held", 0)  # loops that have ended heard of nothing any more
    assert await foreign_files.touch("add", int.__add__, 1, 2) == 3
    with pytest.raises(FileNotFoundError):
        await foreign_files.touch("open", open, "/no/such/file")

    def slow() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await foreign_files.touch("wait", slow)
    assert foreign_files._held == 0


async def test_what_hangs_is_given_up_and_many_of_it_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_files, "SECONDS", 0.05)
    monkeypatch.setattr(foreign_files, "_MOST", 2)
    server = threading.Event()
    for _ in range(2):
        with pytest.raises(Unavailable, match="find it: no answer within"):
            await foreign_files.touch("find it", server.wait)
    with pytest.raises(ResourceExhausted, match="2 earlier requests"):
        await foreign_files.touch("find it", server.wait)
    server.set()
    await eventually(lambda: not foreign_files._held)
    assert await foreign_files.touch("find it", server.wait)


def test_a_loop_that_ends_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_files, "SECONDS", 0.05)
    monkeypatch.setattr(foreign_files, "_held", 0)
    monkeypatch.setattr(foreign_files, "_IDLE", 0)  # or the thread would come into the next test's way
    server, waiting = threading.Event(), list[threading.Thread]()

    def wait() -> None:
        waiting.append(threading.current_thread())
        server.wait()

    with pytest.raises(Unavailable):
        asyncio.run(foreign_files.touch("find it", wait))  # returns, though the thread is there
    server.set()
    waiting[0].join()


async def test_a_thread_serves_again_unless_it_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = {await foreign_files.touch("ask", threading.get_ident) for _ in range(20)}
    monkeypatch.setattr(foreign_files, "SECONDS", 0.05)
    server = threading.Event()
    held = []

    def hang() -> None:
        held.append(threading.get_ident())
        server.wait()

    with pytest.raises(Unavailable):
        await foreign_files.touch("find it", hang)
    assert held == [first]
    assert {await foreign_files.touch("ask", threading.get_ident) for _ in range(20)}.isdisjoint(held)
    server.set()
    await eventually(lambda: not foreign_files._held)
