"""Keeps a store's images in memory: by id, by name, by what a user may type."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from image.errors import InvalidReference
from image.model import Image
from image.reference import Reference, is_digest, parse_reference
from image.shelf.database import ImageRecord
from image.trust.signatures import Signature

_HEX64 = re.compile(r"[0-9a-f]{64}")
_ID_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{3,63})")

Meanings = Callable[[str], tuple[Reference, ...]]  # the references that a typed name may mean; raises InvalidReference


@dataclass(slots=True)
class Known:
    """An image of the store, with its layers, lowest first."""

    image: Image
    chain_ids: tuple[str, ...]
    manifest_digest: str
    signatures: tuple[Signature, ...]
    additional: ImageRecord | None = None  # set if it is an additional store's, and our database has no record


class Catalogue:
    """Knows which images exist, and their names. A name belongs to one image at a time."""

    def __init__(self, meanings: Meanings, pinned: set[str]) -> None:
        self._meanings = meanings
        self._pinned = pinned  # full names
        self._images: dict[str, Known] = {}
        self._names: dict[str, str] = {}

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._images

    def __iter__(self) -> Iterator[Known]:
        return iter(self._images.values())

    def __getitem__(self, image_id: str) -> Known:
        return self._images[image_id]

    def get(self, image_id: str) -> Known | None:
        """Return the image with exactly this id."""
        return self._images.get(image_id)

    def named(self, name: str) -> str | None:
        """Return the id of the image that has this full name."""
        return self._names.get(name)

    def has_some_of(self, repository: str) -> bool:
        """Tell whether there is an image of the repository ("host/path"), with any tag or digest."""
        beginnings = (f"{repository}:", f"{repository}@")
        return any(name.startswith(beginnings) for name in self._names)

    def find(self, name: str) -> Known | None:
        """Find an image by id ("sha256:<hex>", the bare hex, a unique prefix of at least three digits) or reference."""
        if name in self._images:
            return self._images[name]
        return self._images.get(self._names.get(name) or self._by_reference(name) or self._by_id(name))

    def _by_reference(self, name: str) -> str:
        try:
            references = self._meanings(name)
        except InvalidReference:
            return ""
        return next((self._names[r.name] for r in references if r.name in self._names), "")

    def _by_id(self, name: str) -> str:
        if is_digest(name):
            return name
        if _HEX64.fullmatch(name):
            return f"sha256:{name}"
        prefix = _ID_PREFIX.fullmatch(name)
        if prefix is None:
            return ""
        found = [image_id for image_id in self._images if image_id.startswith(f"sha256:{prefix[1]}")]
        return found[0] if len(found) == 1 else ""

    def references(self, image: Image, name: str) -> list[Reference]:
        """Return the references that `name` means for this image: all that it has, if `name` is its id."""
        own = (*image.repo_tags, *image.repo_digests)
        if self._by_id(name) != image.id:
            with suppress(InvalidReference):
                meant = self._meanings(name)
                return [reference for reference in meant if reference.name in own] or list(meant[:1])
        return [parse_reference(one) for one in own]

    def add(self, known: Known, names: tuple[str, ...]) -> Image:
        """Add an image, or update an existing one's origin from `known`, and give it these names."""
        kept = self._images.setdefault(known.image.id, known)
        kept.additional = known.additional
        return self.rename(kept, names)

    def rename(self, known: Known, names: tuple[str, ...]) -> Image:
        """Give names to an image, and take them from the images that had them."""
        losers = {self._names[name] for name in names if name in self._names} - {known.image.id}
        self._names.update(dict.fromkeys(names, known.image.id))
        for loser in losers:
            self._show_names(self._images[loser])
        self._show_names(known)
        return known.image

    def remove(self, image_id: str) -> None:
        del self._images[image_id]
        self._names = {name: owner for name, owner in self._names.items() if owner != image_id}

    def _show_names(self, known: Known) -> None:
        names = sorted(name for name, owner in self._names.items() if owner == known.image.id)
        known.image = msgspec.structs.replace(
            known.image,
            repo_tags=tuple(name for name in names if "@" not in name),
            repo_digests=tuple(name for name in names if "@" in name),
            pinned=known.additional is not None or not self._pinned.isdisjoint(names),
        )
