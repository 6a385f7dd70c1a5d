"""Reports the daemon's state to the service manager (sd_notify(3)); does nothing without one."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """The client of NOTIFY_SOCKET."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watchdog = _watchdog_seconds(environment)

    def ready(self) -> None:
        """Report that the daemon serves, or that a reload is complete."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Report that a reload begins."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Report that the daemon begins to stop."""
        self._send("STOPPING=1")

    async def keep_alive(self) -> None:
        """Notify the watchdog twice per period, from the serving event loop. Returns only if there is no watchdog."""
        while self._watchdog:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self._watchdog / 2)

    def _send(self, state: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.setblocking(False)  # a full queue of the manager must not block the event loop
            try:
                end.sendto(state.encode(), self._address)
            except OSError:
                return  # the manager has gone away


def _watchdog_seconds(environment: Mapping[str, str]) -> float:
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0
    period = environment.get("WATCHDOG_USEC", "")
    return int(period) / 1e6 if period.isdecimal() else 0
