"""Waiting for what comes to be by itself: for a condition, never for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

# What a machine that has other things to do may take for anything at all: nobody waits so long where all is well.
SECONDS = 60.0


def until(condition: Callable[[], object], seconds: float = SECONDS, pause: float = 0.01) -> None:
    """Return once `condition` is true, looked at every `pause` seconds; fail the test when it is not in `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not come to be in {seconds} s"
        time.sleep(pause)


async def eventually(condition: Callable[[], object], seconds: float = SECONDS, pause: float = 0.005) -> None:
    """`until`, while other tasks of the event loop go on."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not come to be in {seconds} s"
        await asyncio.sleep(pause)
