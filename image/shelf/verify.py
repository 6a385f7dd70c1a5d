"""Whether what the store keeps is what it recorded: documents, layers' directories, kept blobs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from image.errors import ImageError
from image.manifest import Descriptor, digest_of
from image.shelf.layers import Layer
from image.unpack.workers import Workers


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with an image; nothing, if `problems` is empty."""

    id: str
    names: tuple[str, ...]
    problems: tuple[str, ...]


def document_problems(image_id: str, configuration: bytes, layers: int, diff_ids: int) -> list[str]:
    """What is wrong with the recorded documents of an image."""
    problems = []
    if digest_of(configuration) != image_id:
        problems.append(f"its configuration has digest {digest_of(configuration)}")
    if layers != diff_ids:
        problems.append(f"its manifest has {layers} layers, its configuration {diff_ids} diff ids")
    return problems


async def layer_problems(workers: Workers, layer: Layer, blob: Descriptor | None) -> list[str]:
    """What is wrong with an unpacked layer, and with the blob beside it, if there is one.

    A layer is never written to once it is recorded: an inode that is missing, is too many, or has changed since is
    damage. That a disk gives back other bytes than were written is seen only of a kept blob.
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


async def _blob_problems(workers: Workers, layer: Layer, blob: Descriptor) -> Sequence[str]:
    size = os.stat(layer.blob).st_size
    digest = await workers.digest(layer.blob)
    if (size, digest) == (blob.size, blob.digest):
        return ()
    return (f"kept blob {layer.blob} is {digest} of {size} bytes, not {blob.digest} of {blob.size}",)
