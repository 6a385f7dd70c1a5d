"""Accounts for a store's bytes: what each image has alone, what images share, what no record names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from image.model import Image

if TYPE_CHECKING:
    from image.shelf.catalogue import Known
    from image.shelf.layers import Layers


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """`own`: of layers that no other image has, and its documents. `shared`: of layers that others have, too."""

    image: Image
    own: int
    shared: int
    additional: bool = False  # in an additional store: nothing here can free it


@dataclass(frozen=True, slots=True)
class StoreBytes:
    """`shared`: layers of several images, each once; `shared_unused`: those of them whose images are all unused.

    `unfinished`: directories of pulls in progress, or of failed ones. `strays`: directories that no record names.
    """

    images: tuple[ImageBytes, ...]
    shared: int
    shared_unused: int
    own_files: int
    unfinished: tuple[Path, ...]
    strays: tuple[Path, ...]


def account(known: Iterable[Known], layers: Layers, used: Container[str]) -> tuple[list[ImageBytes], int, int]:
    """Return each image's bytes, those of shared layers, and of shared layers of unused images only.

    `used` are ids of images that containers use.
    """
    images = list(known)
    owners = Counter(chain_id for one in images for chain_id in set(one.chain_ids))
    kept = {chain_id for one in images if one.image.id in used for chain_id in one.chain_ids}

    def size(chain_ids: Sequence[str]) -> int:
        return sum(layer.record.size for layer in layers.get(chain_ids) if layer.record and not layer.additional)

    found = []
    for one in images:
        chain_ids = list(dict.fromkeys(one.chain_ids))
        shared = size([chain_id for chain_id in chain_ids if owners[chain_id] > 1])
        own = size([chain_id for chain_id in chain_ids if owners[chain_id] == 1])
        found.append(ImageBytes(one.image, own, shared, one.additional is not None))
    several = [chain_id for chain_id, count in owners.items() if count > 1]
    return found, size(several), size([chain_id for chain_id in several if chain_id not in kept])
