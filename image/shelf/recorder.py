"""What changes which images there are: they are installed, named, held and removed, on disk and in memory together."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from image.configuration import Configuration, parse_configuration
from image.errors import ImageInUse, ImageReadOnly, StorageFull
from image.model import Image
from image.reference import digest_of
from image.shelf.additional import AdditionalStore
from image.shelf.catalogue import Catalogue, Known
from image.shelf.database import Database, ImageRecord, LayerRecord
from image.shelf.layers import Layer, Layers, Make
from image.shelf.records import Records
from image.tasks import Tasks
from image.trust.signatures import KEPT_LIMIT, Signature

_log = logging.getLogger(__name__)


class ImageRecorder:
    """One change of a store's images at a time; each goes on to its end though its caller is cancelled."""

    def __init__(self, records: Records, layers: Layers, catalogue: Catalogue) -> None:
        self._records = records
        self._layers = layers
        self._catalogue = catalogue
        self._lent: dict[str, ImageRecord] = {}  # by id, of all additional stores
        self._holds: Counter[str] = Counter()
        self._tasks = Tasks()
        self._changing = asyncio.Lock()

    async def ended(self) -> None:
        """Return when no change is under way."""
        await self._tasks.ended()

    # --- taking over what there is

    def take_over(
        self, images: Sequence[ImageRecord], layers: Sequence[LayerRecord], additional: Sequence[AdditionalStore]
    ) -> None:
        """Have the images that the record has, with their layers, and those of additional stores."""
        self._layers.load(layers)
        for store in additional:
            self._layers.lend((layer, store.layer(layer)) for layer in store.layers)
            for image in store.images:
                self._lent.setdefault(image.id, image)
        for image in images:
            self._layers.use(image.chain_ids)
            self._remember(image, parse_configuration(image.config, image.id), image.names)
        for image_id in self._lent:
            self._show_lent(image_id)

    def _show_lent(self, image_id: str) -> None:
        """Have an additional store's image, unless it is here too, by those of its names that no other has."""
        record = self._lent[image_id]
        if image_id not in self._catalogue:
            self._layers.use(record.chain_ids)
            names = tuple(name for name in record.names if self._catalogue.named(name) is None)
            self._remember(record, parse_configuration(record.config, image_id), names, lent=record)

    # --- adding

    async def install(
        self,
        manifest: bytes,
        configuration: Configuration,
        names: tuple[str, ...],
        make: Make,
        signatures: tuple[Signature, ...] = (),
    ) -> Image:
        """Unpack what is missing, bring it to the disk, record it: the image exists from the last step on.

        Raises what `make` does, StorageFull, ImageError.
        """
        chain_ids = configuration.chain_ids
        async with self._layers.acquired(chain_ids, make) as layers:
            await self._layers.sync(layers)
            record = ImageRecord(configuration.digest, manifest, configuration.raw, chain_ids, names, signatures)
            return await self._tasks.undisturbed(self._record(record, configuration, layers))

    async def _record(self, record: ImageRecord, configuration: Configuration, layers: Sequence[Layer]) -> Image:
        async with self._changing:
            fresh = [layer for layer in layers if not layer.recorded]
            await self._layers.settle(fresh)
            unpacked = [layer.record for layer in fresh if layer.record is not None]
            await self._records.call(Database.add, record, unpacked)
            for layer in fresh:
                layer.recorded = True
            if record.id not in self._catalogue:
                self._layers.use(record.chain_ids)
            return self._remember(record, configuration, record.names)

    def _remember(
        self,
        record: ImageRecord,
        configuration: Configuration,
        names: tuple[str, ...],
        *,
        lent: ImageRecord | None = None,
    ) -> Image:
        image = Image(
            id=record.id,
            repo_tags=(),
            repo_digests=(),
            size=self._layers.size(record.chain_ids) + len(record.manifest) + len(record.config),
            config=configuration.config,
            created=configuration.created,
        )
        known = Known(image, record.chain_ids, digest_of(record.manifest), record.signatures, lent)
        return self._catalogue.add(known, names)

    async def name(self, image_id: str, names: tuple[str, ...], signatures: tuple[Signature, ...] = ()) -> Image | None:
        """Name an image that the store has, and keep what signatures came with it; None if the store has it not."""
        return await self._tasks.undisturbed(self._name(image_id, names, signatures))

    async def _name(self, image_id: str, names: tuple[str, ...], signatures: tuple[Signature, ...]) -> Image | None:
        async with self._changing:
            known = self._catalogue.get(image_id)
            if known is None:
                return None
            if known.lent is not None:  # from now on it is ours, of layers that are not
                all_names = (*known.image.repo_tags, *known.image.repo_digests, *names)
                await self._records.call(Database.add, replace(known.lent, names=all_names), ())
                known.lent = None
            else:
                await self._records.call(Database.name, image_id, names)
            if not set(known.signatures).issuperset(signatures):
                # Those that were just found good go first: each pull may bring others, and not all can be kept.
                known.signatures = tuple(dict.fromkeys((*signatures, *known.signatures)))[:KEPT_LIMIT]
                await self._records.call(Database.sign, image_id, known.signatures)
            return self._catalogue.rename(known, names)

    # --- reading

    async def documents(self, image_id: str) -> tuple[bytes, bytes]:
        """Manifest and configuration as they came. Raises ImageNotFound."""
        known = self._catalogue.get(image_id)
        if known is not None and known.lent is not None:
            return known.lent.manifest, known.lent.config
        return await self._records.call(Database.documents, image_id)

    # --- holding and removing

    def hold(self, image_id: str) -> None:
        """Keep an image from being removed, until `release` was called as often."""
        self._holds[image_id] += 1

    def release(self, image_id: str) -> None:
        self._holds[image_id] -= 1
        if self._holds[image_id] <= 0:
            del self._holds[image_id]

    def require_free(self, image_id: str, what: str) -> None:
        """Raise ImageInUse, saying `what` cannot be done, for an image that is held."""
        if holders := self._holds[image_id]:
            raise ImageInUse(f"{what}: {holders} containers use {image_id}")

    async def remove(self, name: str) -> None:
        """Remove the image that `name` finds, under all its names, and the layers only it has.

        An unknown name is no error. Raises ImageInUse, ImageReadOnly.
        """
        await self._tasks.undisturbed(self._remove(name))

    async def _remove(self, name: str) -> None:
        async with self._changing:
            known = self._catalogue.find(name)
            if known is None:
                return
            image = known.image
            self.require_free(image.id, f"remove image {name}")
            if known.lent is not None:
                raise ImageReadOnly(f"remove image {name}: {image.id} is in an additional store, which is only read")
            self._catalogue.remove(image.id)
            dead = self._layers.drop(known.chain_ids)
            gone = [layer.chain_id for layer in dead]
            try:
                await self._records.call(Database.remove, [image.id], gone)
            except StorageFull:
                # The record itself needs room. Were we to die between the two, the next start drops such an image.
                await self._layers.discard(dead)
                await self._records.call(Database.remove, [image.id], gone)
            if image.id in self._lent:
                self._show_lent(image.id)
        await self._layers.discard(dead)
        _log.info("image removed", extra={"image": image.id, "names": " ".join(image.repo_tags)})
