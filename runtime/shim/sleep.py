"""Ends the shim of a quiet pod until it is needed again: its keeper watches what it watched, and has its deposit.

Only since Linux 6.15, which tells everybody how a process ended: before, an exit status would be lost with the keeper.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from linux.exit_status import tells_everybody
from runtime.shim.deposits import MOST_FDS

if TYPE_CHECKING:
    from runtime.shim.deposits import Deposits
    from runtime.shim.loop import EventLoop


class Sleep:
    """Looks now and then whether anything has happened since, and asks the keeper if nothing has.

    `may` says whether nothing is to be done, `deposit` deposits everything, `leave` ends the process if it can; it gets
    the keeper's pid.
    """

    def __init__(
        self,
        loop: EventLoop,
        deposits: Deposits,
        seconds: float,
        may: Callable[[], bool],
        deposit: Callable[[], None],
        leave: Callable[[int], bool],
    ) -> None:
        self._loop = loop
        self._deposits = deposits
        self._seconds = seconds  # 0 for never
        self._may = may
        self._deposit = deposit
        self._leave = leave
        self._begun = False
        self._seen = 0  # what had happened in the loop when the keeper was asked

    def begin(self) -> None:
        """Look from now on."""
        if self._seconds and not self._begun and tells_everybody():
            self._begun = True
            self._loop.idly(self._seconds, self._look)

    def _look(self) -> None:
        left = self._loop.last + self._seconds - time.monotonic()
        if left <= 0:
            self._ask()
        self._loop.idly(left if left > 0 else self._seconds, self._look)

    def _ask(self) -> None:
        watched = self._loop.watched(but=self._deposits.keeper.fileno())
        able = self._deposits.up_to_date and len(watched) + 2 <= MOST_FDS
        if able and not self._loop.has_timers and self._may():
            self._seen = self._loop.turns
            self._deposit()
            self._deposits.sleep(watched, self._agreed)

    def _agreed(self, keeper: int) -> None:
        """Leave, unless something has happened while the keeper was asked: its answer alone has come since."""
        if self._loop.turns != self._seen + 1 or not self._may() or not self._leave(keeper):
            self._deposits.awake()
