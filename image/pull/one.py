"""One pull: resolves a reference to manifest and configuration for this node, and unpacks the layers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from image.configuration import CONFIG_LIMIT, Configuration, doubt, parse_configuration
from image.errors import DigestMismatch, ImageNotFound, InvalidImage
from image.manifest import (
    DOCUMENTS_LIMIT,
    MANIFEST_TYPES,
    Blob,
    Descriptor,
    Index,
    Manifest,
    choose,
    described_blobs,
    parse_manifest,
)
from image.model import PullCounts, PullPhase, PullProgress
from image.platforms import Platform
from image.reference import Reference, digest_of
from image.registry.origin import NEXT_PLACE, Delivery, Origin
from image.shelf.layer_files import blob_of, make_layer_directory
from image.shelf.layers import Make
from image.shelf.partials import Partials
from image.unpack.workers import LayerForm, Unpacked, Workers

_log = logging.getLogger(__name__)

Report = Callable[[PullProgress], None]


@dataclass(frozen=True, slots=True)
class Resolved:
    """The present meaning of a tag or digest at its registry."""

    reference: Reference
    digest: str  # of the manifest or index that the registry returned
    document: Manifest | Index

    @property
    def names(self) -> tuple[str, ...]:
        """The image's names in the store."""
        return names(self.reference, self.digest)


def names(reference: Reference, digest: str) -> tuple[str, ...]:
    """Return an image's names in the store: by the requested tag, and by its digest."""
    by_digest = reference.with_digest(digest).name
    return (by_digest,) if reference.digest else (reference.name, by_digest)


async def resolve(origin: Origin, reference: Reference) -> Resolved:
    """Resolve a reference at its registry. Raises what `Origin.manifest` does, and InvalidImage."""

    def read(raw: bytes, content_type: str) -> Resolved:
        return Resolved(reference, digest_of(raw), parse_manifest(raw, content_type, str(reference)))

    return await origin.manifest(reference.digest or reference.tag, read)


async def choose_manifest(origin: Origin, resolved: Resolved, platforms: Sequence[Platform]) -> Manifest:
    """Return the image's manifest for one of `platforms`, through any number of nested indexes."""
    what = str(resolved.reference)
    chosen = choose(resolved.document, platforms, what)
    try:
        wanted = next(chosen)
        for _ in range(DOCUMENTS_LIMIT):
            wanted = chosen.send(await _document(origin, wanted, what))
        raise InvalidImage(f"pull {what}: more than {DOCUMENTS_LIMIT} manifests and configurations to choose from")
    except StopIteration as end:
        manifest: Manifest = end.value
        return manifest


async def _document(origin: Origin, wanted: Descriptor, what: str) -> bytes:
    """A manifest or a configuration."""
    if wanted.media_type not in MANIFEST_TYPES:
        return await origin.document(wanted, CONFIG_LIMIT)
    raw = await origin.manifest(wanted.digest, lambda raw, _: raw)
    if len(raw) != wanted.size:
        raise DigestMismatch(f"pull {what}: manifest {wanted.digest} has {len(raw)} bytes, not {wanted.size}")
    return raw


async def get_configuration(
    origin: Origin, manifest: Manifest, platforms: Sequence[Platform], what: str
) -> tuple[Configuration, tuple[Blob, ...]]:
    """Fetch an image's configuration and describe its layers. Raises what `Origin.document` does, and InvalidImage."""
    raw = await origin.document(manifest.config, CONFIG_LIMIT)
    configuration = await asyncio.to_thread(parse_configuration, raw, what)
    blobs = described_blobs(manifest, configuration, what)
    if claim := doubt(configuration, platforms, what):
        _log.warning("pulling an image that may not run on this platform", extra={"image": what, "reason": claim})
    return configuration, blobs


class LayerDownloads:
    """Unpacks the layers of an image while they arrive, and reports the progress of each."""

    def __init__(
        self,
        origin: Origin,
        manifest: Manifest,
        blobs: Sequence[Blob],
        partials: Partials,
        report: Report,
        counts: PullCounts,
    ) -> None:
        self._origin = origin
        self._partials = partials
        self._counts = counts
        self._layers = manifest.layers
        self._blobs = blobs
        self._report = report
        self._begun: set[int] = set()
        for layer in self._layers:
            self._tell(layer, 0, PullPhase.WAITING)

    def make(self, workers: Workers, form: LayerForm) -> Make:
        """Return the function that `Layers.acquired` calls for a missing layer."""

        async def make(position: int, directory: Path) -> Unpacked:
            self._begun.add(position)
            kept = blob_of(directory) if form.blobs else None
            layer = self._layers[position]
            delivery = self._origin.blob(layer)
            async with self._partials.taken(layer.digest, layer.size) as partial:
                while True:
                    came = partial.size if partial is not None else 0
                    so_far = partial.descriptor if partial is not None else None
                    try:
                        async with aclosing(self._observed(layer, delivery, came)) as pieces:
                            blob = self._blobs[position]
                            unpacked = await workers.unpack(
                                pieces, blob, directory, kept, so_far=so_far, indexed=form.indexed
                            )
                        break
                    except NEXT_PLACE as damage:
                        if partial is not None and isinstance(damage, (DigestMismatch, InvalidImage)):
                            partial.clear()
                        if not (came and partial is not None and not partial.size):  # else it was perhaps our copy
                            delivery.refuse(damage)
                        await workers.remove_trees([directory, blob_of(directory)])
                        await asyncio.to_thread(make_layer_directory, directory)
                if partial is not None:
                    await asyncio.to_thread(partial.finish, kept)
            self._counts.layers_fetched += 1
            self._tell(layer, layer.size, PullPhase.COMPLETE)
            return unpacked

        return make

    def finish(self) -> None:
        """Report the layers that were already in the store."""
        for position, layer in enumerate(self._layers):
            if position not in self._begun:
                self._counts.layers_shared += 1
                self._tell(layer, layer.size, PullPhase.EXISTS)

    async def _observed(self, layer: Descriptor, delivery: Delivery, offset: int) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(delivery.pieces(offset)) as pieces:
                async for piece in pieces:
                    offset += len(piece)
                    self._counts.bytes += len(piece)
                    self._tell(layer, offset, PullPhase.PULLING)
                    yield piece
        except ImageNotFound as error:
            if layer.foreign:
                raise ImageNotFound(f"{error} (non-distributable: a layer's urls are not followed)") from error
            raise

    def _tell(self, layer: Descriptor, offset: int, phase: PullPhase) -> None:
        self._report(PullProgress(layer=layer.digest, offset=offset, total=layer.size, phase=phase))
