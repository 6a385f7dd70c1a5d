"""Checks that the store's content is what was recorded: documents, layers' directories, kept blobs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from image.configuration import parse_configuration
from image.errors import ImageError, ImageNotFound, InvalidImage
from image.manifest import Descriptor, Manifest, parse_manifest
from image.model import Image
from image.reference import digest_of
from image.shelf.catalogue import Catalogue
from image.shelf.layers import Layer, Layers
from image.shelf.recorder import ImageRecorder
from image.unpack.workers import Workers


@dataclass(frozen=True, slots=True)
class Verdict:
    """The problems of an image; none if `problems` is empty.

    If only indexes of its layers are damaged, which can be written again, `indexes` has the chain ids of these layers.
    """

    id: str
    names: tuple[str, ...]
    problems: tuple[str, ...]
    indexes: tuple[str, ...] = ()


class Verifier:
    """Verifies images of one store; holds each one meanwhile."""

    def __init__(self, catalogue: Catalogue, layers: Layers, recorder: ImageRecorder, workers: Workers) -> None:
        self._catalogue = catalogue
        self._layers = layers
        self._recorder = recorder
        self._workers = workers

    async def verify(self, name: str) -> list[Verdict]:
        """See `ImageStore.verify`."""
        one = self._catalogue.find(name) if name else None
        if name and one is None:
            raise ImageNotFound(f"verify {name}: the store has no such image")
        verdicts = []
        for image in [known.image for known in ([one] if one is not None else self._catalogue)]:
            if image.id not in self._catalogue:
                continue  # removed while another was verified
            self._recorder.hold(image.id)
            try:
                verdicts.append(await self._verify(image))
            finally:
                self._recorder.release(image.id)
        return verdicts

    async def _verify(self, image: Image) -> Verdict:
        raw, configuration = await self._recorder.documents(image.id)
        layers = self._layers.get(self._catalogue[image.id].chain_ids)
        problems = []
        try:
            manifest = parse_manifest(raw, "", image.id)
        except InvalidImage as error:  # an earlier crispd accepted it
            problems.append(str(error))
            manifest = None
        described = manifest.layers if isinstance(manifest, Manifest) else ()
        problems += _document_problems(image.id, configuration, len(described), len(layers))
        diff_ids = await asyncio.to_thread(_diff_ids, configuration, image.id)
        indexes: dict[str, list[str]] = {}
        for position, layer in enumerate(layers):
            blob = described[position] if position < len(described) else None
            found = await _layer_problems(self._workers, layer, blob)
            index = await _index_problems(self._workers, layer)
            if layer.tar is not None and position < len(diff_ids):
                tar = await _tar_problems(self._workers, layer.tar, diff_ids[position])
                if index and not tar and not layer.additional:
                    indexes[layer.chain_id] = [*found, *index]  # a damaged index is a change, too
                    continue
                found += tar
            problems += found + index
        names = (*image.repo_tags, *image.repo_digests)
        others = tuple(problem for found in indexes.values() for problem in found)
        return Verdict(image.id, names, (*problems, *others), () if problems else tuple(indexes))


def _document_problems(image_id: str, configuration: bytes, layers: int, diff_ids: int) -> list[str]:
    """Find problems in the recorded documents of an image."""
    problems = []
    if digest_of(configuration) != image_id:
        problems.append(f"its configuration has digest {digest_of(configuration)}")
    if layers != diff_ids:
        problems.append(f"its manifest has {layers} layers, its configuration {diff_ids} diff ids")
    return problems


async def _layer_problems(workers: Workers, layer: Layer, blob: Descriptor | None) -> list[str]:
    """Find problems in a layer's directory, and in its kept blob, if any.

    Nothing writes to a recorded layer: a missing, additional or changed inode is damage. A disk that returns other
    bytes than were written is noticed only for a kept blob.
    """
    record = layer.record
    if record is None:
        return [f"layer {layer.chain_id} is not recorded"]
    what = f"layer {layer.chain_id} in {layer.path}"
    problems = []
    kept = layer.blob.is_file()
    try:
        found = await workers.survey(layer.path)
        expected = record.inodes - kept
        if found.inodes != expected:
            problems.append(f"{what} has {found.inodes} inodes, not {expected}")
        if record.sealed and found.changed > record.sealed:
            problems.append(f"{what} was changed after it was unpacked")
        if kept and blob is not None:
            problems += await _blob_problems(workers, layer, blob)
    except ImageError as error:
        problems.append(str(error))
    return problems


def _diff_ids(configuration: bytes, image_id: str) -> Sequence[str]:
    try:
        return parse_configuration(configuration, image_id).diff_ids
    except InvalidImage:  # its wrong digest is reported already
        return ()


async def _index_problems(workers: Workers, layer: Layer) -> list[str]:
    """Find problems in the index of an indexed layer: all of it must be as it was when it was checked."""
    if layer.seal is None:
        return []
    try:
        seal = await workers.check_index(layer.path)
    except ImageError as error:
        return [str(error)]
    return [] if seal == layer.seal else [f"index of layer {layer.chain_id} in {layer.path} was changed"]


async def _tar_problems(workers: Workers, tar: Path, diff_id: str) -> Sequence[str]:
    """Find problems in the tar of an indexed layer: its digest must be the layer's diff id."""
    try:
        digest = await workers.digest(tar)
    except ImageError as error:
        return (str(error),)
    return () if digest == diff_id else (f"{tar} is {digest}, not {diff_id}",)


async def _blob_problems(workers: Workers, layer: Layer, blob: Descriptor) -> Sequence[str]:
    size = os.stat(layer.blob).st_size
    digest = await workers.digest(layer.blob)
    if (size, digest) == (blob.size, blob.digest):
        return ()
    return (f"kept blob {layer.blob} is {digest} of {size} bytes, not {blob.digest} of {blob.size}",)
