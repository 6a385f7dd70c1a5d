"""The image store: what is pulled, imported, named, held, listed and removed. The room's front.

    <root>/images.db      the durable record (image.database)
    <root>/layers/<n>/    unpacked layers (image.layers); 0 is an empty one, for images that have none
    <root>/tmp/           layers being unpacked; what lies there when the store opens is garbage
    <root>/lock           held by the daemon and its workers: one daemon a store
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import ParamSpec, TypeVar

from image.archive.read import Archive, ArchivedImage, archived_images, is_compressed, open_archive, open_file
from image.archive.write import KeptImage, export
from image.errors import (
    ImageError,
    ImageInUse,
    ImageNotFound,
    ImageReadOnly,
    InvalidImage,
    InvalidReference,
    SignatureRefused,
    StorageFull,
)
from image.manifest import Blob, Configuration, Manifest, digest_of, parse_configuration, parse_manifest
from image.model import Credentials, FilesystemUsage, Image, PullProgress
from image.platforms import node_platforms
from image.profiles import Profiles
from image.pull.flights import Pulls
from image.reference import parse_reference
from image.registry.registries_conf import load
from image.registry.transport import Transport
from image.settings import ImageSettings
from image.shelf.additional import read_stores
from image.shelf.catalogue import Catalogue, Known
from image.shelf.database import Database, ImageRecord
from image.shelf.layers import Layer, Layers, Make, base36, blob_of
from image.shelf.root import StoreRoot
from image.shelf.verify import Verdict, document_problems, layer_problems
from image.tasks import Tasks
from image.trust.enforce import Trust, transport_of
from image.trust.policy import Accept
from image.trust.signatures import KEPT_LIMIT, Signature
from image.unpack.workers import Unpacked, Workers

_log = logging.getLogger(__name__)

_DEFAULTS = ImageSettings()

_P = ParamSpec("_P")
_T = TypeVar("_T")


class ImageStore:
    """The images of one node. Belongs to the event loop it was opened on; its methods are to be called there."""

    def __init__(
        self,
        root: StoreRoot,
        registries_conf: Path,
        settings: ImageSettings,
        database: Database,
        thread: ThreadPoolExecutor,
        pinned: Iterable[str],
    ) -> None:
        """For `open`."""
        self._root = root
        self._settings = settings
        self._database = database
        self._thread = thread  # the database's own
        self._transport = Transport(settings)
        self._workers = Workers(root.inherited, settings.layer_limit)
        self._layers = Layers(root.path, self._forget_layers, self._workers, settings.parallel_downloads)
        self._trust = Trust(settings, self._transport)
        self._platforms = node_platforms()
        registries = load(registries_conf)
        self._catalogue = Catalogue(registries, {ref.name for name in pinned for ref in registries.meanings(name)})
        self._lent: dict[str, ImageRecord] = {}  # by id, of all additional stores
        self._holds: Counter[str] = Counter()
        self._tasks = Tasks()
        self._archives = count(1)  # that were decompressed
        self.pulls = Pulls(
            self,
            self._catalogue,
            self._trust,
            self._transport,
            self._workers,
            self._platforms,
            settings,
            registries_conf,
        )
        self.profiles = Profiles(root.path / "profiles", self.pulls, self._trust)
        self._changing = asyncio.Lock()  # one change of the durable record at a time

    @classmethod
    async def open(
        cls,
        root: Path,
        registries_conf: Path,
        settings: ImageSettings = _DEFAULTS,
        *,
        pinned: Iterable[str] = (),
    ) -> ImageStore:
        """Open or make the store below `root`, and remove what interrupted pulls and removals left there.

        `pinned` names images that are reported as such, present or not. Raises ImageError (also when another daemon
        has the store), InvalidConfiguration, InvalidReference.
        """
        with ExitStack() as undo:
            place = await asyncio.to_thread(StoreRoot.open, root)
            undo.callback(place.close)
            thread = ThreadPoolExecutor(1, "images")
            undo.callback(thread.shutdown)
            database = await asyncio.get_running_loop().run_in_executor(thread, Database, place.path / "images.db")
            undo.callback(thread.submit, database.close)
            store = cls(place, registries_conf, settings, database, thread, pinned)
            try:
                await store._load()
            except BaseException:
                await store._transport.close()
                await store._workers.close()
                raise
            undo.pop_all()
        return store

    async def close(self) -> None:
        """End the pulls in flight, undone, and close everything."""
        await self.pulls.close()
        await self._tasks.ended()
        await self._transport.close()
        await self._workers.close()
        await self._query(self._database.close)
        self._thread.shutdown()
        self._root.close()

    async def _load(self) -> None:
        additional = await asyncio.to_thread(read_stores, self._settings.additional_stores)
        lent = {layer.chain_id for store in additional for layer in store.layers}
        images, layers = await self._query(self._database.images), await self._query(self._database.layers)
        there = await asyncio.to_thread(self._root.layer_names)
        own = [layer for layer in layers if base36(layer.number) in there]
        usable = {layer.chain_id for layer in own} | lent
        whole = [image for image in images if usable.issuperset(image.chain_ids)]
        used = {chain_id for image in whole for chain_id in image.chain_ids}
        broken = [image.id for image in images if not usable.issuperset(image.chain_ids)]
        for image_id in broken:
            _log.warning("a layer's directory is gone; the image is removed", extra={"image": image_id})
        kept = [layer for layer in own if layer.chain_id in used]
        if broken or len(kept) < len(layers):
            gone = {layer.chain_id for layer in layers}.difference(layer.chain_id for layer in kept)
            await self._query(self._database.remove, broken, gone)
        garbage = await asyncio.to_thread(self._root.garbage, {base36(layer.number) for layer in kept})
        await self._workers.remove_trees(garbage)
        self._layers.load(kept)
        for store in additional:
            self._layers.lend((layer, store.layer(layer)) for layer in store.layers)
            for image in store.images:
                self._lent.setdefault(image.id, image)
        for image in whole:
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

    # --- reading

    def images(self) -> list[Image]:
        return [known.image for known in self._catalogue]

    def find(self, name: str) -> Image | None:
        """The image of an id ("sha256:<hex>", the bare hex, a unique prefix of three digits or more) or a reference."""
        known = self._catalogue.find(name)
        return known.image if known is not None else None

    def layers(self, image: Image) -> list[Path]:
        """The directories of an image's layers, topmost first: overlay's lowerdir. Raises ImageNotFound.

        Those that one above hides as a whole are left out. Never empty: an image without layers has an empty directory.
        """
        return self.layers_of(image.id)

    def layers_of(self, image_id: str) -> list[Path]:
        """The same of the image with that very id."""
        known = self._catalogue.get(image_id)
        if known is None:
            raise ImageNotFound(f"find layers of {image_id}: the store has no such image")
        return self._layers.stack(known.chain_ids) or [self._root.empty_layer]

    def layer_sizes(self, image: Image) -> list[dict[str, str | int]]:
        """Each layer, lowest first: its chain id, and the bytes and inodes it takes, unpacked and kept."""
        records = [layer.record for layer in self._layers.get(self._catalogue[image.id].chain_ids)]
        return [{"chainID": r.chain_id, "bytes": r.size, "inodes": r.inodes} for r in records if r is not None]

    async def require_trusted(self, image: Image, name: str) -> None:
        """Raise SignatureRefused unless the signature policy, as it is now, accepts the image under `name`.

        By id it has to accept one of the image's names.
        """
        policy = self._trust.policy()
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
            failure = SignatureRefused(f"accept {image.id}: it has no name for the signature policy to judge")
        if failure is not None:
            raise failure

    async def documents(self, image: Image) -> tuple[bytes, bytes]:
        """Manifest and configuration as they came. Raises ImageNotFound."""
        known = self._catalogue.get(image.id)
        if known is not None and known.lent is not None:
            return known.lent.manifest, known.lent.config
        return await self._query(self._database.documents, image.id)

    def usage(self) -> tuple[FilesystemUsage, ...]:
        """What layers and the record take."""
        size, inodes = self._layers.usage()
        own_size, own_inodes = self._root.own_usage()
        mountpoint = os.fspath(self._root.path)
        return (FilesystemUsage(mountpoint=mountpoint, bytes=size + own_size, inodes=inodes + own_inodes),)

    async def tag(self, name: str, new: str) -> Image:
        """Give the image that `name` finds the name `new` too, taken from the image that had it.

        Raises ImageNotFound, InvalidReference.
        """
        image = self.find(name)
        tagged = image and await self.name(image.id, (_tag_name(new),))
        if tagged is None:
            raise ImageNotFound(f"tag image {name}: the store has no such image")
        return tagged

    # --- holding and removing

    def hold(self, image_id: str) -> None:
        """Keep an image from being removed, until `release` was called as often."""
        self._holds[image_id] += 1

    def release(self, image_id: str) -> None:
        self._holds[image_id] -= 1
        if self._holds[image_id] <= 0:
            del self._holds[image_id]

    async def remove(self, name: str) -> None:
        """Remove the image that `name` finds, under all its names, and the layers only it has.

        An unknown name is no error. Raises ImageInUse, ImageReadOnly. Goes on to its end though the
        caller is cancelled.
        """
        await self._tasks.undisturbed(self._remove(name))

    async def _remove(self, name: str) -> None:
        async with self._changing:
            image = self.find(name)
            if image is None:
                return
            if self._holds[image.id]:
                raise ImageInUse(f"remove image {name}: {self._holds[image.id]} containers use {image.id}")
            known = self._catalogue[image.id]
            if known.lent is not None:
                raise ImageReadOnly(f"remove image {name}: {image.id} is in an additional store, which is only read")
            self._catalogue.remove(image.id)
            dead = self._layers.drop(known.chain_ids)
            gone = [layer.chain_id for layer in dead]
            try:
                await self._query(self._database.remove, [image.id], gone)
            except StorageFull:
                # The record itself needs room. Were we to die between the two, `_load` drops an image without layers.
                await self._layers.discard(dead)
                await self._query(self._database.remove, [image.id], gone)
            if image.id in self._lent:
                self._show_lent(image.id)
        await self._layers.discard(dead)
        _log.info("image removed", extra={"image": image.id, "names": " ".join(image.repo_tags)})

    async def _forget_layers(self, chain_ids: Sequence[str]) -> None:
        await self._query(self._database.remove, [], chain_ids)

    # --- pulling, importing, exporting

    async def pull(
        self,
        reference: str,
        credentials: Credentials | None = None,
        progress: Callable[[PullProgress], None] | None = None,
        auth_file: Path | None = None,
    ) -> Image:
        """Pull an image, or find that the store has what the registry has. An equal pull in flight is joined.

        Without credentials those that the node keeps are used, or the ones in `auth_file` (containers-auth.json(5)).
        A pull whose callers were all cancelled is undone. Raises InvalidReference, InvalidConfiguration,
        RegistryBlocked, ImageNotFound, AuthenticationRequired, RegistryUnavailable, DigestMismatch, InvalidImage,
        StorageFull.
        """
        return await self.pulls.pull(reference, credentials, progress, auth_file)

    async def import_archive(self, path: Path, name: str | None = None) -> list[Image]:
        """Add the images of an OCI layout (a directory or a tar) or a docker-archive that run on this node.

        A tar may be compressed with gzip or zstd. Images are named as the archive says, or `name` if there is but one.
        Raises InvalidReference, InvalidImage, DigestMismatch, StorageFull.
        """
        override = None if name is None else _tag_name(name)
        archive = await self._open_archive(path)
        try:
            kind = transport_of(path, docker=not archive.has("oci-layout"))
            real = await asyncio.to_thread(path.resolve)  # scopes are directories: `..` and links do not lead into one
            if any(not isinstance(one, Accept) for one in self._trust.policy().for_archive(kind, real)):
                raise SignatureRefused(f"import {path}: the signature policy wants more of {kind} than a file can tell")
            found = await asyncio.to_thread(archived_images, archive, self._platforms)
            if override is not None and len(found) != 1:
                raise InvalidImage(f"import {path}: {len(found)} images in it, one name for them")
            return [await self._tasks.start(self._import(archive, image, override)) for image in found]
        finally:
            await asyncio.to_thread(archive.close)

    async def _open_archive(self, path: Path) -> Archive:
        """The archive at `path`, decompressed if it is not: its members are looked for where they lie."""
        descriptor = await asyncio.to_thread(open_file, path)
        if not is_compressed(descriptor):
            return await asyncio.to_thread(open_archive, path, descriptor)
        plain = self._root.path / "tmp" / f"archive-{next(self._archives)}"
        try:
            await self._workers.inflate(descriptor, plain)
            whole = os.open(plain, os.O_RDONLY | os.O_CLOEXEC)
        except InvalidImage as error:
            raise InvalidImage(f"read {path}: {error}") from error
        finally:
            os.close(descriptor)
            plain.unlink(missing_ok=True)
        return await asyncio.to_thread(open_archive, path, whole)

    async def unpack_archive(self, source: AsyncIterator[bytes] | int, size: int, directory: Path) -> None:
        """Unpack a tar, compressed or not, into the empty `directory`, as guarded as a layer (LayerWriter's `marked`).

        `source` gives its `size` bytes, or is an open file. Raises InvalidImage, StorageFull, ImageError.
        """
        unpacked = await self._workers.unpack(source, Blob("", size, ""), directory, marked=True)
        if unpacked.unsettled is not None:  # an archive lies on no layers
            unpacked.unsettled.close()

    async def export(self, name: str, path: Path, form: str) -> str:
        """Write an image to the new file or directory `path`, in a form of `export.FORMATS`; its manifest's digest.

        Raises ImageNotFound, also when its blobs were not kept, InvalidImage, DigestMismatch, StorageFull.
        """
        image = self.find(name)
        if image is None:
            raise ImageNotFound(f"export {name}: the store has no such image")
        self.hold(image.id)
        try:
            manifest, configuration = await self.documents(image)
            blobs = tuple(layer.blob for layer in self._layers.get(self._catalogue[image.id].chain_ids))
            kept = KeptImage(image.id, image.repo_tags, manifest, configuration, blobs)
            return await asyncio.to_thread(export, kept, path, form)
        finally:
            self.release(image.id)

    # --- verifying

    async def verify(self, name: str = "") -> list[Verdict]:
        """Compare an image, or all, with what was recorded of it. Raises ImageNotFound."""
        one = self.find(name) if name else None
        if name and one is None:
            raise ImageNotFound(f"verify {name}: the store has no such image")
        verdicts = []
        for image in [one] if one is not None else self.images():
            if image.id not in self._catalogue:
                continue  # removed while others were looked at
            self.hold(image.id)
            try:
                verdicts.append(await self._verify(image))
            finally:
                self.release(image.id)
        return verdicts

    async def _verify(self, image: Image) -> Verdict:
        raw, configuration = await self.documents(image)
        layers = self._layers.get(self._catalogue[image.id].chain_ids)
        problems = []
        try:
            manifest = parse_manifest(raw, "", image.id)
        except InvalidImage as error:  # what an earlier crispd took
            problems.append(str(error))
            manifest = None
        described = manifest.layers if isinstance(manifest, Manifest) else ()
        problems += document_problems(image.id, configuration, len(described), len(layers))
        for position, layer in enumerate(layers):
            blob = described[position] if position < len(described) else None
            problems += await layer_problems(self._workers, layer, blob)
        return Verdict(image.id, (*image.repo_tags, *image.repo_digests), tuple(problems))

    async def repair(self, name: str = "") -> list[Verdict]:
        """Pull damaged images again; the verdicts afterwards. Those that no registry gave stay as they are.

        Raises ImageInUse, before anything is done, when containers use one, what `verify` raises, and, after all
        others were repaired, what a pull did: such an image is gone.
        """
        damaged = [verdict for verdict in await self.verify(name) if verdict.problems]
        pulled = [verdict for verdict in damaged if any("@" in one for one in verdict.names)]
        for verdict in pulled:
            if self._holds[verdict.id]:
                raise ImageInUse(f"repair image {verdict.id}: {self._holds[verdict.id]} containers use it")
        for verdict in pulled:  # all of them before the first pull, or it would find damaged layers that they share
            await self.remove(verdict.id)
        failures: list[ImageError] = []
        for verdict in pulled:
            try:
                await self._pull_again(verdict)
            except ImageError as error:
                failures.append(error)
        if failures:
            raise failures[0] if len(failures) == 1 else ImageError("; ".join(map(str, failures)))
        return await self.verify(name)

    async def _pull_again(self, verdict: Verdict) -> None:
        by_digest = next(one for one in verdict.names if "@" in one)
        image = await self.pull(by_digest)
        await self.name(image.id, verdict.names)
        _log.info("image repaired", extra={"image": image.id, "problems": "; ".join(verdict.problems)})

    async def _import(self, archive: Archive, found: ArchivedImage, name: str | None) -> Image:
        async def make(position: int, directory: Path) -> Unpacked:
            descriptor = await asyncio.to_thread(archive.open, found.members[position])
            try:
                keep = blob_of(directory) if self._settings.keep_blobs else None
                return await self._workers.unpack(descriptor, found.blobs[position], directory, keep)
            finally:
                os.close(descriptor)

        names = tuple(map(_tag_name, found.names)) if name is None else (name,)
        if found.doubt:
            extra = {"image": found.configuration.digest, "reason": found.doubt}
            _log.warning("importing an image that may not run on this platform", extra=extra)
        image = await self.install(found.manifest, found.configuration, names, make)
        _log.info("image imported", extra={"image": image.id, "names": " ".join(names)})
        return image

    # --- recording

    async def install(
        self,
        manifest: bytes,
        configuration: Configuration,
        names: tuple[str, ...],
        make: Make,
        signatures: tuple[Signature, ...] = (),
    ) -> Image:
        """Unpack what is missing, bring it to the disk, record it: the image exists from the last step on."""
        chain_ids = configuration.chain_ids
        async with self._layers.acquired(chain_ids, make) as layers:
            await self._layers.sync(layers)
            record = ImageRecord(configuration.digest, manifest, configuration.raw, chain_ids, names, signatures)
            return await self._tasks.undisturbed(self._record(record, configuration, layers))

    async def _record(self, record: ImageRecord, configuration: Configuration, layers: Sequence[Layer]) -> Image:
        async with self._changing:
            fresh = [layer for layer in layers if not layer.recorded]
            await self._layers.settle(fresh)
            await self._query(self._database.add, record, [layer.record for layer in fresh if layer.record is not None])
            for layer in fresh:
                layer.recorded = True
            if record.id not in self._catalogue:
                self._layers.use(record.chain_ids)
            return self._remember(record, configuration, record.names)

    async def name(
        self, image_id: str, names: tuple[str, ...], signatures: tuple[Signature, ...] = ()
    ) -> Image | None:
        """Name an image that the store has, and keep what signatures came with it; None if the store has it not."""
        return await self._tasks.undisturbed(self._name(image_id, names, signatures))

    async def _name(self, image_id: str, names: tuple[str, ...], signatures: tuple[Signature, ...]) -> Image | None:
        async with self._changing:
            known = self._catalogue.get(image_id)
            if known is None:
                return None
            if known.lent is not None:  # from now on it is ours, of layers that are not
                all_names = (*known.image.repo_tags, *known.image.repo_digests, *names)
                await self._query(self._database.add, replace(known.lent, names=all_names), ())
                known.lent = None
            else:
                await self._query(self._database.name, image_id, names)
            if not set(known.signatures).issuperset(signatures):
                # Those that were just found good go first: each pull may bring others, and not all can be kept.
                known.signatures = tuple(dict.fromkeys((*signatures, *known.signatures)))[:KEPT_LIMIT]
                await self._query(self._database.sign, image_id, known.signatures)
            return self._catalogue.rename(known, names)

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

    async def _query(self, method: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call the database on its own thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(method, *args, **kwargs))


def _tag_name(text: str) -> str:
    """The name an import is filed under. Raises InvalidReference, also for a digest: an archive has no registry's."""
    reference = parse_reference(text)
    if reference.digest:
        raise InvalidReference(f"import as {text!r}: an imported image is named by a tag")
    return reference.name
