"""Changes the set of images: installs, names, holds and removes them, on disk and in memory together."""

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
    """Makes one change of a store's images at a time. A change completes even if its caller is cancelled."""

    def __init__(self, records: Records, layers: Layers, catalogue: Catalogue) -> None:
        self._records = records
        self._layers = layers
        self._catalogue = catalogue
        self._additional: dict[str, ImageRecord] = {}  # by id: the images of all additional stores
        self._holds: Counter[str] = Counter()
        self._tasks = Tasks()
        self._changing = asyncio.Lock()

    async def ended(self) -> None:
        """Return when no change is running."""
        await self._tasks.ended()

    # --- loading

    def take_over(
        self, images: Sequence[ImageRecord], layers: Sequence[LayerRecord], additional: Sequence[AdditionalStore]
    ) -> None:
        """Load the database's images and layers, and those of additional stores."""
        self._layers.load(layers)
        for store in additional:
            self._layers.add_additional((layer, store.layer(layer)) for layer in store.layers)
            for image in store.images:
                self._additional.setdefault(image.id, image)
        for image in images:
            self._layers.use(image.chain_ids)
            self._remember(image, parse_configuration(image.config, image.id), image.names)
        for image_id in self._additional:
            self._show_additional(image_id)

    def _show_additional(self, image_id: str) -> None:
        """Add an additional store's image, unless this store has it, with those of its names that are free."""
        record = self._additional[image_id]
        if image_id not in self._catalogue:
            self._layers.use(record.chain_ids)
            names = tuple(name for name in record.names if self._catalogue.named(name) is None)
            self._remember(record, parse_configuration(record.config, image_id), names, additional=record)

    async def drop_unused(self, chain_ids: Sequence[str]) -> None:
        """Remove layers that no image and no pull has. Raises ImageError."""
        await self._tasks.undisturbed(self._drop_unused(chain_ids))

    async def _drop_unused(self, chain_ids: Sequence[str]) -> None:
        async with self._changing:
            dead = self._layers.unused(chain_ids)
            await self._records.call(Database.remove, (), [layer.chain_id for layer in dead])
        await self._layers.discard(dead)

    # --- adding

    async def install(
        self,
        manifest: bytes,
        configuration: Configuration,
        names: tuple[str, ...],
        make: Make,
        signatures: tuple[Signature, ...] = (),
    ) -> Image:
        """Unpack missing layers, sync them to the disk, and record the image: it exists after the last step.

        Raises what `make` raises, StorageFull, ImageError.
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
        additional: ImageRecord | None = None,
    ) -> Image:
        image = Image(
            id=record.id,
            repo_tags=(),
            repo_digests=(),
            size=self._layers.size(record.chain_ids) + len(record.manifest) + len(record.config),
            config=configuration.config,
            created=configuration.created,
        )
        known = Known(image, record.chain_ids, digest_of(record.manifest), record.signatures, additional)
        return self._catalogue.add(known, names)

    async def name(self, image_id: str, names: tuple[str, ...], signatures: tuple[Signature, ...] = ()) -> Image | None:
        """Give names to an image, and keep its new signatures. Returns None if the store has no such image."""
        return await self._tasks.undisturbed(self._name(image_id, names, signatures))

    async def _name(self, image_id: str, names: tuple[str, ...], signatures: tuple[Signature, ...]) -> Image | None:
        async with self._changing:
            known = self._catalogue.get(image_id)
            if known is None:
                return None
            if known.additional is not None:  # record it here; its layers stay in the additional store
                all_names = (*known.image.repo_tags, *known.image.repo_digests, *names)
                await self._records.call(Database.add, replace(known.additional, names=all_names), ())
                known.additional = None
            else:
                await self._records.call(Database.name, image_id, names)
            if not set(known.signatures).issuperset(signatures):
                # The newest go first: each pull may bring more, and their number is limited.
                known.signatures = tuple(dict.fromkeys((*signatures, *known.signatures)))[:KEPT_LIMIT]
                await self._records.call(Database.sign, image_id, known.signatures)
            return self._catalogue.rename(known, names)

    async def index_again(self, image_id: str, damaged: Sequence[str]) -> None:
        """Write the indexes of an image's layers `damaged` again. Raises StorageFull, ImageError."""
        await self._tasks.undisturbed(self._index_again(image_id, damaged))

    async def _index_again(self, image_id: str, damaged: Sequence[str]) -> None:
        async with self._changing:
            if (known := self._catalogue.get(image_id)) is not None:
                for record in await self._layers.index_again(known.chain_ids, damaged):
                    await self._records.call(Database.reseal, record)

    # --- reading

    async def documents(self, image_id: str) -> tuple[bytes, bytes]:
        """Return an image's original manifest and configuration. Raises ImageNotFound."""
        known = self._catalogue.get(image_id)
        if known is not None and known.additional is not None:
            return known.additional.manifest, known.additional.config
        return await self._records.call(Database.documents, image_id)

    # --- holding and removing

    def hold(self, image_id: str) -> None:
        """Protect an image from removal, until `release` was called as often as `hold`."""
        self._holds[image_id] += 1

    def release(self, image_id: str) -> None:
        self._holds[image_id] -= 1
        if self._holds[image_id] <= 0:
            del self._holds[image_id]

    def require_free(self, image_id: str, what: str) -> None:
        """Raise ImageInUse, with a message that begins with `what`, if the image is held."""
        if holders := self._holds[image_id]:
            raise ImageInUse(f"{what}: {holders} containers use {image_id}: remove them first")

    async def remove(self, name: str) -> None:
        """Remove the image that `name` finds, under all its names, with the layers that no other image has.

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
            if known.additional is not None:
                raise ImageReadOnly(f"remove image {name}: {image.id} is in an additional store, which is read-only")
            self._catalogue.remove(image.id)
            dead = self._layers.drop(known.chain_ids)
            gone = [layer.chain_id for layer in dead]
            try:
                await self._records.call(Database.remove, [image.id], gone)
            except StorageFull:
                # The database itself needs space. If crispd dies in between, its next start drops the image.
                await self._layers.discard(dead)
                await self._records.call(Database.remove, [image.id], gone)
            if image.id in self._additional:
                self._show_additional(image.id)
        await self._layers.discard(dead)
        _log.info("image removed", extra={"image": image.id, "names": " ".join(image.repo_tags)})
