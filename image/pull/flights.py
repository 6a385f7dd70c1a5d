"""Pulls in flight: their sources, their waiters, and their results."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from image.errors import AuthenticationRequired, ImageError, ImageNotFound, RegistryUnavailable, SignatureRefused
from image.model import Credentials, Image, PullCounts, PullProgress
from image.platforms import Platform
from image.pull.one import LayerDownloads, Report, Resolved, choose_manifest, get_configuration, names, resolve
from image.reference import Reference
from image.registry.origin import NEXT_PLACE, Origin
from image.registry.registries import Registries
from image.shelf.catalogue import Catalogue
from image.shelf.partials import Partials
from image.shelf.recorder import ImageRecorder
from image.tasks import Tasks
from image.trust.enforce import Trust
from image.trust.policy import Accept, Reject, Requirements
from image.trust.signatures import Signature
from image.unpack.workers import LayerForm, Workers

_log = logging.getLogger(__name__)

# Errors of one search registry after which the next one is tried for a short name.
_NEXT_REGISTRY = (ImageNotFound, AuthenticationRequired, RegistryUnavailable, SignatureRefused)

Around = Callable[[str, Mapping[str, str]], AbstractContextManager[object]]  # takes a name and attributes
_Key = tuple[tuple[Reference, ...], Credentials | None, Path | None]


def _unseen(_name: str, _attributes: Mapping[str, str]) -> AbstractContextManager[object]:
    return nullcontext()


@dataclass(slots=True, eq=False)
class _Job:
    """A pull in flight and its waiters."""

    task: asyncio.Task[Image]
    waiters: int = 0
    listeners: list[Report] = field(default_factory=list)


class Pulls:
    """All pulls of a store."""

    def __init__(
        self,
        recorder: ImageRecorder,
        catalogue: Catalogue,
        registries: Registries,
        trust: Trust,
        workers: Workers,
        partials: Partials,
        platforms: Sequence[Platform],
        *,
        form: LayerForm,
        around: Around | None = None,
    ) -> None:
        """`around` is entered for each pull and its parts."""
        self._recorder = recorder
        self._catalogue = catalogue
        self._registries = registries
        self._trust = trust
        self._workers = workers
        self._partials = partials
        self._platforms = platforms
        self._form = form
        self._around = around or _unseen
        self._jobs: dict[_Key, _Job] = {}
        self._tasks = Tasks()
        self.counts = PullCounts()

    @property
    def in_flight(self) -> int:
        """Number of pulls in flight."""
        return len(self._jobs)

    async def close(self) -> None:
        """Cancel and undo the pulls in flight."""
        for job in self._jobs.values():
            job.task.cancel()
        await self._tasks.ended()

    async def pull(
        self,
        reference: str,
        credentials: Credentials | None,
        progress: Callable[[PullProgress], None] | None,
        auth_file: Path | None,
    ) -> Image:
        """See `ImageStore.pull`."""
        conf = await asyncio.to_thread(self._registries.read)
        candidates = conf.to_pull(reference)
        key = (candidates, credentials, auth_file)
        job = self._jobs.get(key)
        if job is None:
            listeners: list[Report] = []
            origins = [(c, self._registries.origin(conf, c, credentials, auth_file)) for c in candidates]
            job = _Job(self._tasks.start(self._counted(origins, listeners)), 0, listeners)
            self._jobs[key] = job
            job.task.add_done_callback(lambda _: self._forget(key, job))
        if progress is not None:
            job.listeners.append(progress)
        job.waiters += 1
        try:
            return await asyncio.shield(job.task)
        finally:
            job.waiters -= 1
            if progress is not None:
                job.listeners.remove(progress)
            if not job.waiters and not job.task.done():
                self._forget(key, job)
                job.task.cancel()

    def _forget(self, key: _Key, job: _Job) -> None:
        if self._jobs.get(key) is job:
            del self._jobs[key]

    async def _counted(self, origins: Sequence[tuple[Reference, Origin]], listeners: Sequence[Report]) -> Image:
        try:
            image = await self._from_any(origins, listeners)
        except asyncio.CancelledError:
            self.counts.cancelled += 1
            raise
        except BaseException:
            self.counts.failed += 1
            raise
        self.counts.succeeded += 1
        return image

    async def _from_any(self, origins: Sequence[tuple[Reference, Origin]], listeners: Sequence[Report]) -> Image:
        for position, (reference, origin) in enumerate(origins, start=1):
            try:
                with self._around("pull", {"crisp.image": reference.name}):
                    return await self._from_one(reference, origin, listeners)
            except _NEXT_REGISTRY:
                if position == len(origins):
                    raise
        raise AssertionError("unreachable")

    async def _from_one(self, reference: Reference, origin: Origin, listeners: Sequence[Report]) -> Image:
        requirements = self._trust.policy().for_reference(reference)
        if any(isinstance(requirement, Reject) for requirement in requirements):
            await self._trust.require(reference, (), (), requirements)
        signed = any(not isinstance(requirement, Accept) for requirement in requirements)
        if not signed and (image := await self._as_known(reference, origin)):
            return image
        failures: dict[str, ImageError] = {}  # by the digest that could not be pulled
        while True:
            digest = ""
            try:
                with self._around("resolve the name", {}):
                    resolved = await resolve(origin, reference)
                if resolved.digest in failures:  # the next place has the same digest, so it is not damaged in a mirror
                    raise failures[resolved.digest]
                digest = resolved.digest
                return await self._resolved(resolved, origin, requirements if signed else (), listeners)
            except (*NEXT_PLACE, SignatureRefused) as error:
                failures[digest] = error
                origin.pass_over(error)

    async def _as_known(self, reference: Reference, origin: Origin) -> Image | None:
        """Return the stored image if the registry confirms that the name still means it.

        It does not fetch the manifest: registries count that as a pull.
        """
        if not self._catalogue.has_some_of(reference.repository):
            return None
        with self._around("resolve the name", {}):
            digest = await origin.digest(reference.digest or reference.tag)
        known = self._catalogue.named(reference.with_digest(digest).name) if digest else None
        return None if known is None else await self._recorder.name(known, names(reference, digest))

    async def _resolved(
        self, resolved: Resolved, origin: Origin, requirements: Requirements, listeners: Sequence[Report]
    ) -> Image:
        reference = resolved.reference
        known = self._catalogue.named(reference.with_digest(resolved.digest).name)
        if known is not None and not requirements and (image := await self._recorder.name(known, resolved.names)):
            return image
        manifest = await choose_manifest(origin, resolved, self._platforms)
        signatures: tuple[Signature, ...] = ()
        if requirements:
            digests = tuple(dict.fromkeys((manifest.digest, resolved.digest)))
            signatures = await self._trust.signatures(origin, reference, digests, requirements)
            await self._trust.require(reference, digests, signatures, requirements)
        if image := await self._recorder.name(manifest.config.digest, resolved.names, signatures):
            return image
        configuration, blobs = await get_configuration(origin, manifest, self._platforms, str(reference))
        report = partial(_tell, listeners)
        downloads = LayerDownloads(origin, manifest, blobs, self._partials, report, self.counts)
        make = downloads.make(self._workers, self._form)
        with self._around("fetch and unpack layers", {"crisp.layers": str(len(blobs))}):
            image = await self._recorder.install(manifest.raw, configuration, resolved.names, make, signatures)
        downloads.finish()
        _log.info("image pulled", extra={"image": image.id, "names": reference})
        return image


def _tell(listeners: Sequence[Report], step: PullProgress) -> None:
    for listener in tuple(listeners):
        listener(step)
