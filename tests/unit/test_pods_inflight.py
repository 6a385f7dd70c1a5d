"""Requests that join, requests that are abandoned, names that never get stuck."""

from __future__ import annotations

import asyncio

import pytest

from pods.errors import AlreadyExists
from pods.inflight import Background, Flights


class _Work:
    """A making that ends when told, and counts what was made and undone."""

    def __init__(self) -> None:
        self.made = 0
        self.undone: list[str] = []
        self.go = asyncio.Event()
        self.undo_go = asyncio.Event()
        self.undo_go.set()
        self.flights = Flights(Background())

    async def make(self) -> str:
        self.made += 1
        result = f"id{self.made}"
        await self.go.wait()
        return result

    async def undo(self, result: str) -> None:
        await self.undo_go.wait()
        self.undone.append(result)

    def call(self, request: object = "same") -> asyncio.Task[str]:
        return asyncio.create_task(self.flights.run("name", request, self.make, self.undo))


async def _turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_identical_requests_join() -> None:
    work = _Work()
    first, second = work.call(), work.call()
    await _turn()
    work.go.set()
    assert await asyncio.gather(first, second) == ["id1", "id1"]
    assert (work.made, work.undone) == (1, [])


async def test_a_repeated_request_takes_over_from_one_that_timed_out() -> None:
    work = _Work()
    first = work.call()
    await _turn()
    first.cancel()
    await _turn()
    second = work.call()
    await _turn()
    work.go.set()
    assert await second == "id1"
    await _turn()
    assert (work.made, work.undone) == (1, [])


async def test_what_nobody_waits_for_is_undone_and_the_name_free_again() -> None:
    work = _Work()
    first = work.call()
    await _turn()
    first.cancel()
    work.go.set()
    await _turn()
    assert work.undone == ["id1"]
    assert await work.call() == "id2"


async def test_a_request_during_the_undoing_waits_and_starts_anew() -> None:
    work = _Work()
    work.undo_go.clear()
    first = work.call()
    await _turn()
    first.cancel()
    work.go.set()
    await _turn()
    second = work.call()
    await _turn()
    assert work.made == 1
    work.undo_go.set()
    assert await second == "id2"
    assert work.undone == ["id1"]


async def test_a_different_request_is_refused_while_somebody_waits() -> None:
    work = _Work()
    first = work.call()
    await _turn()
    with pytest.raises(AlreadyExists):
        await work.call("different")
    work.go.set()
    assert await first == "id1"


async def test_a_different_request_waits_out_an_abandoned_one() -> None:
    work = _Work()
    first = work.call()
    await _turn()
    first.cancel()
    await _turn()
    second = work.call("different")
    await _turn()
    work.go.set()
    assert await second == "id2"
    assert work.undone == ["id1"]


async def test_a_failure_reaches_all_callers_and_frees_the_name() -> None:
    work = _Work()

    async def fail() -> str:
        await work.go.wait()
        raise ValueError("no")

    calls = [asyncio.create_task(work.flights.run("name", "same", fail, work.undo)) for _ in range(2)]
    await _turn()
    work.go.set()
    assert [type(result) for result in await asyncio.gather(*calls, return_exceptions=True)] == [ValueError] * 2
    assert await work.call() == "id1"


async def test_what_is_being_undone_is_not_handed_out() -> None:
    """The object exists while it is undone: the repeated request must wait for that, and make another."""
    work = _Work()
    made: dict[str, str] = {}

    async def make() -> str:
        made["name"] = await work.make()
        return made["name"]

    async def undo(result: str) -> None:
        await work.undo(result)
        del made["name"]

    def call() -> asyncio.Task[str]:
        running = work.flights.run("name", "same", make, undo, made=lambda: made.get("name"))
        return asyncio.create_task(running)

    work.undo_go.clear()
    first = call()
    await _turn()
    first.cancel()
    await _turn()
    work.go.set()
    await _turn()
    second = call()
    await _turn()
    assert not second.done()
    work.undo_go.set()
    assert await second == "id2"
    assert await call() == "id2"
    assert (work.made, work.undone) == (2, ["id1"])
