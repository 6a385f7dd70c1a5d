"""Imports images from files: OCI layouts and docker-archives."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path

from image.archive.members import Archive, is_compressed, open_archive, open_file
from image.archive.read import ArchivedImage, archived_images
from image.errors import InvalidImage, InvalidReference, SignatureRefused
from image.model import Image
from image.platforms import Platform
from image.reference import parse_reference
from image.shelf.layer_files import blob_of
from image.shelf.recorder import ImageRecorder
from image.shelf.root import StoreRoot
from image.tasks import Tasks, opened
from image.trust.enforce import Trust, transport_of
from image.trust.policy import Accept
from image.unpack.workers import LayerForm, Unpacked, Workers

_log = logging.getLogger(__name__)


class Imports:
    """The imports of one store. `form` determines how new layers are stored."""

    def __init__(
        self,
        root: StoreRoot,
        recorder: ImageRecorder,
        trust: Trust,
        workers: Workers,
        platforms: Sequence[Platform],
        *,
        form: LayerForm,
    ) -> None:
        self._root = root
        self._recorder = recorder
        self._trust = trust
        self._workers = workers
        self._platforms = platforms
        self._form = form
        self._tasks = Tasks()
        self._inflated = count(1)  # numbers of decompressed archives

    async def ended(self) -> None:
        """Wait until no import is in progress."""
        await self._tasks.ended()

    async def add(self, path: Path, name: str | None) -> list[Image]:
        """See `ImageStore.import_archive`."""
        override = None if name is None else tag_name(name)
        archive = await self._open(path)
        try:
            kind = transport_of(path, docker=not archive.has("oci-layout"))
            real = await asyncio.to_thread(path.resolve)  # scopes are directories: `..` and links do not lead into one
            if any(not isinstance(one, Accept) for one in self._trust.policy().for_archive(kind, real)):
                raise SignatureRefused(f"import {path}: the signature policy wants more of {kind} than a file can tell")
            found = await asyncio.to_thread(archived_images, archive, self._platforms)
            if override is not None and len(found) != 1:
                raise InvalidImage(f"import {path}: {len(found)} images in it, one name for them")
            return [await self._tasks.start(self._install(archive, image, override)) for image in found]
        finally:
            await asyncio.to_thread(archive.close)

    async def _open(self, path: Path) -> Archive:
        """The archive at `path`, decompressed if it is not: its members are looked for where they lie."""
        descriptor = await opened(partial(open_file, path), os.close)
        if not is_compressed(descriptor):
            return await opened(partial(open_archive, path, descriptor), _close)
        plain = self._root.path / "tmp" / f"archive-{next(self._inflated)}"
        try:
            await self._workers.inflate(descriptor, plain)
            whole = os.open(plain, os.O_RDONLY | os.O_CLOEXEC)
        except InvalidImage as error:
            raise InvalidImage(f"read {path}: {error}") from error
        finally:
            os.close(descriptor)
            plain.unlink(missing_ok=True)
        return await opened(partial(open_archive, path, whole), _close)

    async def _install(self, archive: Archive, found: ArchivedImage, name: str | None) -> Image:
        async def make(position: int, directory: Path) -> Unpacked:
            descriptor = await opened(partial(archive.open, found.members[position]), os.close)
            try:
                keep = blob_of(directory) if self._form.blobs else None
                blob, indexed = found.blobs[position], self._form.indexed
                return await self._workers.unpack(descriptor, blob, directory, keep, indexed=indexed)
            finally:
                os.close(descriptor)

        names = tuple(map(tag_name, found.names)) if name is None else (name,)
        if found.doubt:
            extra = {"image": found.configuration.digest, "reason": found.doubt}
            _log.warning("importing an image that may not run on this platform", extra=extra)
        image = await self._recorder.install(found.manifest, found.configuration, names, make)
        _log.info("image imported", extra={"image": image.id, "names": " ".join(names)})
        return image


def _close(archive: Archive) -> None:
    archive.close()


def tag_name(text: str) -> str:
    """Return the name for an imported image. Raises InvalidReference; also for a digest, which only registries give."""
    reference = parse_reference(text)
    if reference.digest:
        raise InvalidReference(f"import as {text!r}: an imported image is named by a tag")
    return reference.name
