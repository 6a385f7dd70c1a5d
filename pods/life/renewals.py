"""Replaces the shims of another version of crisp, after an upgrade, by such of this one. Containers run on."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from runtime.client import ShimGone, ShimSilent
from runtime.errors import RuntimeCoreError

if TYPE_CHECKING:
    from pods.life.shims import Shims

_FIRST_SECONDS: Final = 0.1  # until those that had something to do are asked again; doubles up to the last
_LAST_SECONDS: Final = 30.0
_log = logging.getLogger("crisp.pods")


class Renewals:
    """Renews shims in the background, one at a time: at the start, and again those that had something to do."""

    def __init__(self, shims: Shims) -> None:
        self._shims = shims
        self._stays: dict[str, str] = {}  # why a sandbox's shim could not be renewed, as last logged
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Renew now, and from now on."""
        self._task = asyncio.create_task(self._run(), name="renewal of shims")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        pause = _FIRST_SECONDS
        while True:
            for sandbox_id in self._shims.renewable():
                if not await self._renew(sandbox_id):
                    _log.error("no more shims are renewed by this daemon, since one was lost")
                    return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_SECONDS)

    async def _renew(self, sandbox_id: str) -> bool:
        """Return whether others may be renewed too."""
        fields = {"sandbox": sandbox_id}
        try:
            pid = await self._shims.renew(sandbox_id)
        except (ShimGone, ShimSilent) as error:
            _log.error("renewing a shim failed", extra=fields | {"error": error})
            return not self._shims.has(sandbox_id)  # its pod was removed meanwhile
        except RuntimeCoreError as error:
            if self._stays.get(sandbox_id) != error.message:
                self._stays[sandbox_id] = error.message
                _log.info("the shim of an earlier version stays for now", extra=fields | {"error": error})
            return True
        self._stays.pop(sandbox_id, None)
        _log.info("shim renewed", extra=fields | {"pid": pid})
        return True
