"""One pull: from a reference to the manifest and configuration for this node, and to the layers' unpacking."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from image.errors import DigestMismatch, InvalidImage
from image.layers import Make, blob_of
from image.manifest import (
    CONFIG_LIMIT,
    Blob,
    Configuration,
    Descriptor,
    Index,
    Manifest,
    Platform,
    choose,
    described_blobs,
    digest_of,
    parse_configuration,
    parse_manifest,
    require_platform,
)
from image.model import PullCounts, PullPhase, PullProgress
from image.origin import Origin
from image.reference import Reference
from image.unpack import Unpacked, Workers

_NESTING = 4  # indexes in indexes

Report = Callable[[PullProgress], None]


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a tag or digest stands for at its registry, just now."""

    reference: Reference
    digest: str  # of the manifest or index that the registry gave for it
    document: Manifest | Index

    @property
    def names(self) -> tuple[str, ...]:
        """What the image is filed under: the tag that was asked for, and the digest it had."""
        by_digest = self.reference.with_digest(self.digest).name
        return (by_digest,) if self.reference.digest else (self.reference.name, by_digest)


async def resolve(origin: Origin, reference: Reference) -> Resolved:
    """Ask what `reference` is. Raises what `Origin.manifest` does, and InvalidImage."""
    raw, content_type = await origin.manifest(reference.digest or reference.tag)
    return Resolved(reference, digest_of(raw), parse_manifest(raw, content_type, str(reference)))


async def choose_manifest(origin: Origin, resolved: Resolved, platforms: Sequence[Platform]) -> Manifest:
    """The manifest of the image for one of `platforms`, through as many indexes as there are."""
    what = str(resolved.reference)
    document = resolved.document
    for _ in range(_NESTING):
        if isinstance(document, Manifest):
            return document
        descriptor = choose(document, platforms, what)
        raw, _ = await origin.manifest(descriptor.digest)
        if len(raw) != descriptor.size:
            sizes = f"{len(raw)} bytes, not {descriptor.size}"
            raise DigestMismatch(f"pull {what}: manifest {descriptor.digest} has {sizes}")
        document = parse_manifest(raw, descriptor.media_type, what)
    raise InvalidImage(f"pull {what}: indexes nested deeper than {_NESTING}")


async def get_configuration(
    origin: Origin, manifest: Manifest, platforms: Sequence[Platform], what: str
) -> tuple[Configuration, tuple[Blob, ...]]:
    """The configuration of an image, and its layers. Raises what `Origin.blob` does, and InvalidImage."""
    raw = await origin.document(manifest.config, CONFIG_LIMIT)
    configuration = parse_configuration(raw, what)
    require_platform(configuration, platforms, what)
    return configuration, described_blobs(manifest, configuration, what)


class LayerDownloads:
    """Unpacks the layers of one image while they arrive, and tells how far each is."""

    def __init__(
        self, origin: Origin, manifest: Manifest, blobs: Sequence[Blob], report: Report, counts: PullCounts
    ) -> None:
        self._origin = origin
        self._counts = counts
        self._layers = manifest.layers
        self._blobs = blobs
        self._report = report
        self._begun: set[int] = set()
        for layer in self._layers:
            self._tell(layer, 0, PullPhase.WAITING)

    def make(self, workers: Workers, keep: bool) -> Make:
        """What `Layers.acquired` calls for a layer that is not there yet."""

        async def make(position: int, directory: Path) -> Unpacked:
            self._begun.add(position)
            async with aclosing(self._observed(self._layers[position])) as pieces:
                unpacked = await workers.unpack(
                    pieces, self._blobs[position], directory, blob_of(directory) if keep else None
                )
            self._counts.layers_fetched += 1
            self._tell(self._layers[position], self._layers[position].size, PullPhase.COMPLETE)
            return unpacked

        return make

    def finish(self) -> None:
        """Tell of the layers that were there already."""
        for position, layer in enumerate(self._layers):
            if position not in self._begun:
                self._counts.layers_shared += 1
                self._tell(layer, layer.size, PullPhase.EXISTS)

    async def _observed(self, layer: Descriptor) -> AsyncGenerator[bytes, None]:
        offset = 0
        async with aclosing(self._origin.blob(layer)) as pieces:
            async for piece in pieces:
                offset += len(piece)
                self._counts.bytes += len(piece)
                self._tell(layer, offset, PullPhase.PULLING)
                yield piece

    def _tell(self, layer: Descriptor, offset: int, phase: PullPhase) -> None:
        self._report(PullProgress(layer=layer.digest, offset=offset, total=layer.size, phase=phase))
