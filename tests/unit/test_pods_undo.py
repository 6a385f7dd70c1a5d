"""Undoings by name."""

from __future__ import annotations

import asyncio
import logging

import pytest

from pods.undo import Undo


def _run(body: list[str], *, fails: bool, discards: bool = False) -> None:
    async def broken() -> None:
        raise OSError("disk on fire")

    async def run() -> None:
        async with Undo({"container": "c"}) as undo:
            undo.register("take away the first", body.append, "first")
            undo.register("take away the second", broken)
            undo.register("take away the third", body.append, "third")
            if discards:
                undo.discard()
            if fails:
                raise ValueError("the step's own failure")

    asyncio.run(run())


def test_undoings_run_last_first_are_named_and_keep_none_other_from_running(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    undone: list[str] = []
    with pytest.raises(ValueError, match="the step's own failure"):
        _run(undone, fails=True)
    assert undone == ["third", "first"]
    assert [record.getMessage() for record in caplog.records] == [
        "undo: take away the third",
        "undo: take away the second",
        "undo failed: take away the second",
        "undo: take away the first",
    ]
    assert {vars(record)["container"] for record in caplog.records} == {"c"}


def test_what_is_discarded_is_not_undone() -> None:
    undone: list[str] = []
    _run(undone, fails=False, discards=True)
    assert undone == []


@pytest.mark.parametrize("discards", [False, True])
def test_what_is_at_the_end_comes_after_all_undoings_and_always(discards: bool) -> None:
    done: list[str] = []

    async def run() -> None:
        async with Undo({}) as undo:
            undo.at_end(done.append, "end")
            undo.register("take away", done.append, "undone")
            if discards:
                undo.discard()

    asyncio.run(run())
    assert done == ["end"] if discards else ["undone", "end"]
