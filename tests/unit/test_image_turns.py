"""How many layers are worked at at a time (image/shelf/turns.py)."""

from __future__ import annotations

import asyncio

from image.shelf.turns import Turns, at_once

GIB = 1 << 30


def test_their_number_follows_processors_and_memory() -> None:
    assert [at_once(processors, 0, GIB) for processors in (1, 2, 16)] == [4, 6, 34]
    assert [at_once(16, memory, GIB) for memory in (GIB // 2, 6 * GIB, 60 * GIB)] == [1, 4, 34]


async def test_a_slow_one_keeps_no_others_waiting() -> None:
    """Its turn is given back once, after its time or at its end."""
    turns, most = Turns(2, patience=0.05), 0
    working: set[int] = set()
    slow = asyncio.Event()

    async def work(number: int, until: asyncio.Event | None = None) -> None:
        nonlocal most
        async with turns.one():
            working.add(number)
            most = max(most, len(working - {0, 1}))
            await (until.wait() if until else asyncio.sleep(0))
            working.discard(number)

    stuck = [asyncio.create_task(work(number, slow)) for number in (0, 1)]
    await asyncio.wait_for(asyncio.gather(*(work(number) for number in range(2, 9))), 60)
    assert working == {0, 1}
    slow.set()
    await asyncio.gather(*stuck)
    most = 0
    await asyncio.wait_for(asyncio.gather(*(work(number) for number in range(10, 20))), 60)
    assert most == 2
