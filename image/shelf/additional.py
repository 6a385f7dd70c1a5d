"""Additional image stores: directories of this format that were filled elsewhere, and are only read here.

Their images are there as if they had been pulled, and their layers are shared by those that are. What changes in such a
store while crispd runs is seen at its next start.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from image.errors import ImageError
from image.shelf.database import Database, ImageRecord, LayerRecord
from image.shelf.layer_files import base36

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdditionalStore:
    """What one has. `layers` are those whose directories are there, `images` those that are whole."""

    path: Path
    images: tuple[ImageRecord, ...]
    layers: tuple[LayerRecord, ...]

    def layer(self, record: LayerRecord) -> Path:
        """A layer's directory."""
        return self.path / "layers" / base36(record.number)


def read_stores(paths: Sequence[Path], kinds: Collection[str]) -> list[AdditionalStore]:
    """The stores of these directories, with their layers of these kinds.

    One that cannot be read is told of, and left out: a node goes on without it.
    """
    stores = []
    for path in paths:
        try:
            stores.append(_read(path, kinds))
        except ImageError as error:
            _log.error("additional image store not used", extra={"store": path, "error": error})
    return stores


def _read(path: Path, kinds: Collection[str]) -> AdditionalStore:
    with closing(Database(path / "images.db", read_only=True)) as database:
        images, layers = database.images(), database.layers()
    found = AdditionalStore(path, (), ())
    there = tuple(layer for layer in layers if layer.kind in kinds and found.layer(layer).is_dir())
    usable = {layer.chain_id for layer in there}
    for image in images:
        if not usable.issuperset(image.chain_ids):
            _log.warning(
                "a layer of an additional store's image is gone, or cannot be mounted here",
                extra={"store": path, "image": image.id},
            )
    return AdditionalStore(path, tuple(image for image in images if usable.issuperset(image.chain_ids)), there)
