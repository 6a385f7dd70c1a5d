"""What goes on in threads when its caller is cancelled."""

from __future__ import annotations

import asyncio
import threading

import pytest

from image.tasks import opened
from tests.waiting import eventually


async def test_what_is_opened_for_nobody_is_closed() -> None:
    may_open, closed = threading.Event(), list[str]()

    def open() -> str:
        may_open.wait(10)
        return "a descriptor"

    waiting = asyncio.create_task(opened(open, closed.append))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert closed == []
    may_open.set()
    await eventually(lambda: closed == ["a descriptor"])
    assert await opened(open, closed.append) == "a descriptor"
    assert closed == ["a descriptor"]


async def test_a_failure_is_the_callers_and_of_one_that_is_gone_nobodys(caplog: pytest.LogCaptureFixture) -> None:
    may_open = threading.Event()

    def open() -> int:
        may_open.wait(10)
        raise FileNotFoundError("missing")

    waiting = asyncio.create_task(opened(open, lambda _: None))
    await asyncio.sleep(0)
    waiting.cancel()
    may_open.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(FileNotFoundError, match="missing"):
        await opened(open, lambda _: None)
    assert caplog.records == []
