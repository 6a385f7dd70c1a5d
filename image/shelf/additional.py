"""Reads additional image stores: directories in this store's format that another crispd filled.

Their images are usable as if they had been pulled, and pulled images share their layers. crispd sees changes in such a
store at its next start.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from image.errors import ImageError
from image.shelf.database import INDEXED, Database, ImageRecord, LayerRecord
from image.shelf.layer_files import base36

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdditionalStore:
    """An additional store's content: the layers whose directories exist, and the images whose layers all do."""

    path: Path
    images: tuple[ImageRecord, ...]
    layers: tuple[LayerRecord, ...]

    def layer(self, record: LayerRecord) -> Path:
        """Return a layer's directory."""
        return self.path / "layers" / base36(record.number)


def read_stores(paths: Sequence[Path], kinds: Collection[str]) -> list[AdditionalStore]:
    """Read the stores in these directories, with their layers of these kinds.

    If a store cannot be read, log an error and leave it out: the node goes on without it.
    """
    stores = []
    for path in paths:
        try:
            stores.append(_read(path, kinds))
        except ImageError as error:
            _log.error("additional image store is ignored: it cannot be read", extra={"store": path, "error": error})
    return stores


def _is_usable(layer: LayerRecord, kinds: Collection[str]) -> bool:
    return layer.kind in kinds and (layer.kind != INDEXED or bool(layer.seal))


def _read(path: Path, kinds: Collection[str]) -> AdditionalStore:
    with closing(Database(path / "images.db", read_only=True)) as database:
        images, layers = database.images(), database.layers()
    found = AdditionalStore(path, (), ())
    there = tuple(layer for layer in layers if _is_usable(layer, kinds) and found.layer(layer).is_dir())
    usable = {layer.chain_id for layer in there}
    for image in images:
        if not usable.issuperset(image.chain_ids):
            _log.warning(
                "image of an additional store is ignored: a layer is missing, or cannot be mounted",
                extra={"store": path, "image": image.id},
            )
    return AdditionalStore(path, tuple(image for image in images if usable.issuperset(image.chain_ids)), there)
