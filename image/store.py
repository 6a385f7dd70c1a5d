"""The image store: pulls, imports, names, holds, lists and removes images. The front of `image`.

<root>/images.db      the durable record (image.shelf.database)
<root>/layers/<n>/    layers (image.shelf.layers); 0 is an empty one, for images that have none
<root>/tmp/           layers in the making
<root>/partial/       bytes of large layers that are coming (image.shelf.partials)
<root>/garbage/       what interrupted pulls and removals left, until it is removed
<root>/lock           held by the daemon and its workers: one daemon a store
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Container, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path

from image.archive.write import KeptImage, export
from image.erofs.index import is_short, lengthen
from image.erofs.layout import Malformed
from image.erofs.mount import INDEX
from image.erofs.mounted import Mounting
from image.erofs.probe import way
from image.erofs.seal import Seal
from image.errors import ImageError, ImageNotFound, SignatureRefused
from image.imports import Imports, tag_name
from image.manifest import Blob
from image.model import Credentials, FilesystemUsage, Image, PullProgress
from image.platforms import node_platforms
from image.profiles import Profiles
from image.pull.flights import Around, Pulls
from image.pull.repair import Repairer
from image.registry.registries import Registries
from image.registry.transport import Transport
from image.settings import ImageSettings
from image.shelf.accounting import StoreBytes, account
from image.shelf.additional import read_stores
from image.shelf.catalogue import Catalogue
from image.shelf.database import INDEXED, UNPACKED, Database, LayerRecord
from image.shelf.layer_files import base36
from image.shelf.layers import Layers
from image.shelf.partials import Partials
from image.shelf.recorder import ImageRecorder
from image.shelf.records import Records
from image.shelf.root import StoreRoot
from image.shelf.turns import Turns, at_once
from image.shelf.verify import Verdict, Verifier
from image.tasks import Tasks
from image.trust.enforce import Trust
from image.trust.policy import Accept
from image.unpack.confinement import skeleton_memory
from image.unpack.workers import LayerForm, Place, Workers

_log = logging.getLogger(__name__)

_DEFAULTS = ImageSettings()
_LEAST_PARALLEL = 3  # layers of one pull: most of the time they wait for the network
_KEPT_SECONDS = 3600.0  # for which layers of an interrupted pull wait for the next try


class ImageStore:
    """The images of one node. Use it only on the event loop that opened it."""

    def __init__(
        self,
        root: StoreRoot,
        registries_conf: Path,
        settings: ImageSettings,
        records: Records,
        pinned: Iterable[str],
        around: Around | None,
        place_workers: Place | None,
        workers_memory: int,
        mounting: Mounting,
        unmountable: str,
    ) -> None:
        """Use `open` instead."""
        self.unmountable = unmountable  # why the kernel cannot mount indexed layers; "" if it can
        self._root = root
        self._settings = settings
        self._records = records
        self._transport = Transport(settings)
        self._workers = Workers(root.inherited, settings.layer_limit, place_workers)
        number = at_once(len(os.sched_getaffinity(0)), workers_memory, skeleton_memory())
        self._layers = Layers(
            *(root.path, records.forget_layers, records.keep_layers, records.unkeep_layer),
            *(self._workers, mounting, Turns(number), settings.parallel_downloads or max(_LEAST_PARALLEL, number // 2)),
        )
        self._unasked: asyncio.TimerHandle | None = None  # removes kept layers that no pull asked for
        self._tasks = Tasks()
        self._trust = Trust(settings, self._transport)
        registries = Registries(registries_conf, settings, self._transport)
        names = {reference.name for name in pinned for reference in registries.meanings(name)}
        self._catalogue = Catalogue(registries.meanings, names)
        self._recorder = ImageRecorder(records, self._layers, self._catalogue)
        platforms = node_platforms()
        self._form = form = LayerForm(settings.keep_blobs, settings.image_layers != "unpacked" and not unmountable)
        self._partials = Partials(root.path / "partial")
        self.pulls = Pulls(
            *(self._recorder, self._catalogue, registries, self._trust, self._workers, self._partials, platforms),
            form=form,
            around=around,
        )
        self.profiles = Profiles(root.path / "profiles", registries, self._trust)
        self._imports = Imports(root, self._recorder, self._trust, self._workers, platforms, form=form)
        self._verifier = Verifier(self._catalogue, self._layers, self._recorder, self._workers)
        self._cleaning: asyncio.Task[None] | None = None
        self._repairer = Repairer(self._verifier, self._recorder, self.pulls)

    @classmethod
    async def open(
        cls,
        root: Path,
        registries_conf: Path,
        settings: ImageSettings = _DEFAULTS,
        *,
        pinned: Iterable[str] = (),
        around: Around | None = None,
        place_workers: Place | None = None,
        workers_memory: int = 0,
    ) -> ImageStore:
        """Open or make the store in `root`, and begin to remove what interrupted pulls and removals left.

        Images named by `pinned` are reported as pinned; `around` is entered for each pull and its parts.
        `place_workers` moves the process that forks all workers into a cgroup, which limits their memory to
        `workers_memory` bytes. Raises ImageError (also if another daemon uses the store), InvalidConfiguration,
        InvalidReference.
        """
        async with AsyncExitStack() as undo:
            place = await asyncio.to_thread(StoreRoot.open, root)
            undo.callback(place.close)
            records = await Records.open(place.path / "images.db")
            undo.push_async_callback(records.close)
            kept = await records.call(Database.layers)
            there = [
                (place.path / "layers" / base36(layer.number), Seal.parse(layer.seal)) for layer in kept if layer.seal
            ]
            mounting, unmountable = await asyncio.to_thread(way, place.path / "tmp", there)
            if unmountable and settings.image_layers == "erofs":
                raise ImageError(f'image_layers: "erofs" is impossible on this kernel ({unmountable}): set "auto"')
            store = cls(
                *(place, registries_conf, settings, records, pinned, around),
                *(place_workers, workers_memory, mounting, unmountable),
            )
            undo.push_async_callback(store._workers.close)
            undo.push_async_callback(store._transport.close)
            await store._load()
            undo.pop_all()
        return store

    async def close(self) -> None:
        """Cancel the pulls in flight, and close everything. What they have finished stays for the next crispd."""
        if self._unasked is not None:
            self._unasked.cancel()
        if self._cleaning is not None:
            self._cleaning.cancel()  # the next crispd goes on
        await self._tasks.ended()
        self._layers.keep_finished()
        self._partials.keep()
        await self.pulls.close()
        await self._partials.close()
        await self._imports.ended()
        await self._recorder.ended()
        await self._layers.freed()
        self._layers.close()
        await self._transport.close()
        await self._workers.close()
        await self._records.close()
        self._root.close()

    async def _load(self) -> None:
        """Load the recorded images and additional stores; remove images with missing layers."""
        kinds = (UNPACKED,) if self.unmountable else (UNPACKED, INDEXED)
        additional = await asyncio.to_thread(read_stores, self._settings.additional_stores, kinds)
        additional_layers = {layer.chain_id for store in additional for layer in store.layers}
        images, layers = await self._records.call(Database.images), await self._records.call(Database.layers)
        if self.unmountable and any(layer.kind == INDEXED for layer in layers):
            raise ImageError(
                f"open image store {self._root.path}: it has layers that this kernel cannot mount: {self.unmountable}; "
                "boot the kernel that they were made with, or remove the directory and pull again"
            )
        there = await asyncio.to_thread(self._root.layer_names)
        layers = await self._lengthened(layers)
        checked = [await self._checked(layer) for layer in layers if base36(layer.number) in there]
        own = [layer for layer in checked if layer is not None]
        usable = {layer.chain_id for layer in own} | additional_layers
        whole = [image for image in images if usable.issuperset(image.chain_ids)]
        used = {chain_id for image in whole for chain_id in image.chain_ids}
        broken = [image.id for image in images if not usable.issuperset(image.chain_ids)]
        for image_id in broken:
            _log.warning("removed an image with a missing layer; pull it again", extra={"image": image_id})
        oldest = time.time_ns() - int(_KEPT_SECONDS * 1e9)
        unasked = [layer.chain_id for layer in own if layer.chain_id not in used and layer.sealed > oldest]
        kept = [layer for layer in own if layer.chain_id in used or layer.chain_id in unasked]
        if broken or len(kept) < len(layers):
            gone = {layer.chain_id for layer in layers}.difference(layer.chain_id for layer in kept)
            await self._records.call(Database.remove, broken, gone)
        names = {base36(layer.number) for layer in kept}
        await self._workers.remove_trees(await asyncio.to_thread(self._root.set_aside, names))
        self._recorder.take_over(whole, kept, additional)
        # It may take minutes, and no pod should wait for it.
        self._cleaning = self._tasks.start(self._clean())
        if unasked:
            loop = asyncio.get_running_loop()
            self._unasked = loop.call_later(_KEPT_SECONDS, lambda: self._tasks.start(self._drop_unasked(unasked)))

    async def _clean(self) -> None:
        await self._partials.begin()
        try:
            await self._workers.remove_trees(await asyncio.to_thread(self._root.aside))
        except ImageError as error:
            _log.warning("could not remove what interrupted pulls and removals left", extra={"error": error})

    async def _drop_unasked(self, chain_ids: Sequence[str]) -> None:
        try:
            await self._recorder.drop_unused(chain_ids)
        except ImageError as error:
            _log.warning("layers of an unfinished pull were not removed", extra={"error": error})

    async def _lengthened(self, layers: Sequence[LayerRecord]) -> list[LayerRecord]:
        """Make the indexes of an earlier crisp as long as newer kernels want them (`PAGE_BLOCKS`).

        They get their seals anew afterwards, since an interruption may leave them as no seal says.
        """
        indexed = [layer for layer in layers if layer.kind == INDEXED]
        short = {layer.number: layer for layer in await asyncio.to_thread(self._short, indexed)}
        for layer in short.values():
            await self._records.call(Database.reseal, replace(layer, seal=""))
            with suppress(OSError, Malformed):  # the check will tell
                await asyncio.to_thread(lengthen, self._index(layer))
        return [replace(layer, seal="") if layer.number in short else layer for layer in layers]

    def _short(self, layers: Iterable[LayerRecord]) -> list[LayerRecord]:
        """Return the layers whose indexes are to be lengthened: a changed one stays, and is told of when it is used."""
        found = []
        for layer in layers:
            with suppress(OSError):
                if not layer.seal:
                    found.append(layer)
                elif is_short(self._index(layer)):
                    with self._index(layer).open("rb") as file:
                        Seal.parse(layer.seal).require(file.fileno())
                    found.append(layer)
        return found

    def _index(self, layer: LayerRecord) -> Path:
        return self._root.path / "layers" / base36(layer.number) / INDEX

    async def _checked(self, layer: LayerRecord) -> LayerRecord | None:
        """Check the index of a layer if the crisp that wrote it did not; None if that fails."""
        if layer.kind != INDEXED or layer.seal:
            return layer
        try:
            seal = await self._workers.check_index(self._root.path / "layers" / base36(layer.number))
        except ImageError as error:
            _log.warning("removing a layer that cannot be mounted", extra={"layer": layer.chain_id, "error": error})
            return None
        sealed = replace(layer, seal=seal, sealed=time.time_ns())  # it may have been lengthened
        await self._records.call(Database.reseal, sealed)
        return sealed

    # --- reading

    @property
    def layer_kind(self) -> str:
        """The kind of layers of new images."""
        return INDEXED if self._form.indexed else UNPACKED

    def images(self) -> list[Image]:
        return [known.image for known in self._catalogue]

    def find(self, name: str) -> Image | None:
        """Find an image by reference or id ("sha256:<hex>", bare hex, or a unique prefix of at least three digits)."""
        known = self._catalogue.find(name)
        return known.image if known is not None else None

    def layers(self, image: Image) -> list[Path]:
        """Return the directories of an image's layers, topmost first, for overlay's lowerdir. Raises ImageNotFound.

        Layers that a higher one hides completely are left out. An image without layers has an empty directory.
        """
        return self.layers_of(image.id)

    def layers_of(self, image_id: str) -> list[Path]:
        """Like `layers`, for the image with this exact id."""
        known = self._catalogue.get(image_id)
        if known is None:
            raise ImageNotFound(f"find layers of {image_id}: the store has no such image")
        return self._layers.stack(known.chain_ids) or [self._root.empty_layer]

    def layer_sizes(self, image: Image) -> list[dict[str, str | int]]:
        """Return each layer, lowest first: chain id, kind, and the bytes and inodes on disk with its kept blob."""
        records = [layer.record for layer in self._layers.get(self._catalogue[image.id].chain_ids)]
        return [
            {"chainID": r.chain_id, "kind": r.kind, "bytes": r.size, "inodes": r.inodes}
            for r in records
            if r is not None
        ]

    async def require_trusted(self, image: Image, name: str) -> None:
        """Raise SignatureRefused unless the present signature policy accepts the image under `name`.

        For an id the policy must accept one of the image's names.
        """
        policy = self._trust.policy()
        if policy.accepts_all:
            return
        known = self._catalogue[image.id]
        failure: SignatureRefused | None = None
        for reference in self._catalogue.references(image, name):
            digests = (known.manifest_digest, *(n.partition("@")[2] for n in image.repo_digests))
            requirements = policy.for_reference(reference)
            try:
                await self._trust.require(reference, digests, known.signatures, requirements)
            except SignatureRefused as error:
                failure = failure or error
            else:
                return
        if failure is None and policy.default != (Accept(),):
            reason = "it has no name that the signature policy could accept: tag it, or pull it by name"
            failure = SignatureRefused(f"accept {image.id}: {reason}")
        if failure is not None:
            raise failure

    async def documents(self, image: Image) -> tuple[bytes, bytes]:
        """Return the original manifest and configuration. Raises ImageNotFound."""
        return await self._recorder.documents(image.id)

    def usage(self) -> tuple[FilesystemUsage, ...]:
        """Return the disk use of layers and database."""
        size, inodes = self._layers.usage()
        own_size, own_inodes = self._root.own_usage()
        mountpoint = os.fspath(self._root.path)
        return (FilesystemUsage(mountpoint=mountpoint, bytes=size + own_size, inodes=inodes + own_inodes),)

    async def accounts(self, used: Container[str]) -> StoreBytes:
        """Return what holds the store's bytes; `used` are ids of images that containers use."""
        images, shared, unused = account(self._catalogue, self._layers, used)
        in_work, names = self._layers.places()
        left = [path for path in await asyncio.to_thread(self._root.garbage, names) if path not in in_work]
        partial = await asyncio.to_thread(self._partials.paths)
        unfinished = (*(path for path in left if path.parent.name == "tmp"), *partial)
        strays = tuple(path for path in left if path.parent.name != "tmp")
        return StoreBytes(tuple(images), shared, unused, self._root.own_usage()[0], unfinished, strays)

    async def tag(self, name: str, new: str) -> Image:
        """Give the image that `name` finds the name `new` as well; another image with that name loses it.

        Raises ImageNotFound, InvalidReference.
        """
        image = self.find(name)
        tagged = image and await self._recorder.name(image.id, (tag_name(new),))
        if tagged is None:
            raise ImageNotFound(f"tag image {name}: the store has no such image")
        return tagged

    # --- holding and removing

    def hold(self, image_id: str) -> None:
        """Keep an image from being removed until `release` has been called as often."""
        self._recorder.hold(image_id)

    def release(self, image_id: str) -> None:
        self._recorder.release(image_id)

    async def remove(self, name: str) -> None:
        """Remove the image that `name` finds, with all its names and the layers that no other image has.

        An unknown name is no error. Raises ImageInUse, ImageReadOnly. It finishes even if the caller is cancelled.
        """
        await self._recorder.remove(name)
        await self._partials.sweep()  # kubelet removes images if the disk is short

    # --- pulling, importing, exporting

    async def pull(
        self,
        reference: str,
        credentials: Credentials | None = None,
        progress: Callable[[PullProgress], None] | None = None,
        auth_file: Path | None = None,
    ) -> Image:
        """Pull an image, unless the store has what the registry has. An identical pull in flight is joined.

        Without credentials the node's own are used, or those in `auth_file` (containers-auth.json(5)). A pull is undone
        if all callers are cancelled. Raises InvalidReference, InvalidConfiguration, RegistryBlocked, ImageNotFound,
        AuthenticationRequired, RegistryUnavailable, DigestMismatch, InvalidImage, StorageFull.
        """
        return await self.pulls.pull(reference, credentials, progress, auth_file)

    async def import_archive(self, path: Path, name: str | None = None) -> list[Image]:
        """Import images for this node's platform from an OCI layout (directory or tar) or a docker-archive.

        A tar may be compressed with gzip or zstd. Names are the archive's, or `name` if there is only one image.
        Raises InvalidReference, InvalidImage, DigestMismatch, StorageFull.
        """
        return await self._imports.add(path, name)

    async def unpack_archive(self, source: AsyncIterator[bytes] | int, size: int, directory: Path) -> None:
        """Unpack a tar, compressed or not, into the empty `directory`, as safely as a layer (see `marked`).

        `source` yields its `size` bytes, or is an open file. Raises InvalidImage, StorageFull, ImageError.
        """
        unpacked = await self._workers.unpack(source, Blob("", size, ""), directory, marked=True)
        if unpacked.unsettled is not None:  # an archive has no layers below it
            unpacked.unsettled.close()

    async def export(self, name: str, path: Path, form: str) -> str:
        """Export an image to the new file or directory `path` in a format of `export.FORMATS`; return its digest.

        Raises ImageNotFound (also if its blobs were not kept), InvalidImage, DigestMismatch, StorageFull.
        """
        image = self.find(name)
        if image is None:
            raise ImageNotFound(f"export {name}: the store has no such image")
        self.hold(image.id)
        try:
            manifest, configuration = await self.documents(image)
            layers = self._layers.get(self._catalogue[image.id].chain_ids)
            blobs, tars = tuple(layer.blob for layer in layers), tuple(layer.tar for layer in layers)
            kept = KeptImage(image.id, image.repo_tags, manifest, configuration, blobs, tars)
            return await asyncio.to_thread(export, kept, path, form)
        finally:
            self.release(image.id)

    # --- verifying

    def missing_layers(self) -> Iterator[tuple[str, Path]]:
        """Yield the layers of images, by id, whose directories are gone."""
        for known in self._catalogue:
            for layer in self._layers.get(known.chain_ids):
                if not layer.path.exists():
                    yield known.image.id, layer.path

    async def verify(self, name: str = "") -> list[Verdict]:
        """Compare one image, or all, with the records. Raises ImageNotFound."""
        return await self._verifier.verify(name)

    async def repair(self, name: str = "") -> list[Verdict]:
        """Pull damaged images again, and return the new verdicts. Images that came from no registry stay as they are.

        If only indexes of layers are damaged, write them again, also of images in use. Raises ImageInUse, before any
        pull, if containers use another damaged image; what `verify` raises; and, after the others are repaired, what a
        failed pull raised: its image is gone.
        """
        return await self._repairer.repair(name)
