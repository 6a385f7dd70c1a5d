"""Repairs images whose layers or documents differ from the records, by removing and pulling them again.

Indexes of layers are written again from the layers' tars, without a registry.
"""

from __future__ import annotations

import logging

from image.errors import ImageError
from image.pull.flights import Pulls
from image.shelf.recorder import ImageRecorder
from image.shelf.verify import Verdict, Verifier

_log = logging.getLogger(__name__)


class Repairer:
    """The repairs of one store."""

    def __init__(self, verifier: Verifier, recorder: ImageRecorder, pulls: Pulls) -> None:
        self._verifier = verifier
        self._recorder = recorder
        self._pulls = pulls

    async def repair(self, name: str) -> list[Verdict]:
        """See `ImageStore.repair`."""
        damaged = [verdict for verdict in await self._verifier.verify(name) if verdict.problems]
        indexed = [verdict for verdict in damaged if verdict.indexes]
        for verdict in indexed:
            await self._recorder.index_again(verdict.id, verdict.indexes)
            _log.info("indexes of layers written again", extra={"image": verdict.id})
        if indexed:
            damaged = [verdict for verdict in await self._verifier.verify(name) if verdict.problems]
        pulled = [verdict for verdict in damaged if any("@" in one for one in verdict.names)]
        for verdict in pulled:
            self._recorder.require_free(verdict.id, f"repair image {verdict.id}")
        for verdict in pulled:  # all before the first pull, which would otherwise reuse shared damaged layers
            await self._recorder.remove(verdict.id)
        failures: list[ImageError] = []
        for verdict in pulled:
            try:
                await self._pull_again(verdict)
            except ImageError as error:
                failures.append(error)
        if failures:
            raise failures[0] if len(failures) == 1 else ImageError("; ".join(map(str, failures)))
        return await self._verifier.verify(name)

    async def _pull_again(self, verdict: Verdict) -> None:
        by_digest = next(one for one in verdict.names if "@" in one)
        image = await self._pulls.pull(by_digest, None, None, None)
        await self._recorder.name(image.id, verdict.names)
        _log.info("image repaired", extra={"image": image.id, "problems": "; ".join(verdict.problems)})
