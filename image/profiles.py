"""Security profiles from registries (KEP-6061): artifacts with one file, pulled by digest, stored beside the images.

A profile is identified by its manifest's digest. Its file and its record are in `profiles/`. The record is written
last, so a profile with a record is complete.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from image.documents import Malformed, decode
from image.errors import ImageError, InvalidImage, SignatureRefused
from image.manifest import Descriptor, checked
from image.model import Credentials
from image.reference import Reference, digest_of, parse_reference
from image.registry.origin import Origin
from image.registry.registries import Registries
from image.shelf.layer_files import sync_directory
from image.trust.enforce import Trust
from image.trust.policy import Accept, Reject, Requirements
from image.trust.signatures import KEPT_LIMIT, Signature

PROFILE_LIMIT: Final = 1 << 20  # bytes of a profile
_PROFILES: Final = 4096  # the most that are kept; kubelet removes those that no pod names
_REFERENCES: Final = 256  # references to remember for one profile

Check = Callable[[bytes], None]  # raises if the content is no profile of the requested kind


class ProfileInfo(msgspec.Struct, frozen=True):
    """A pulled profile."""

    digest: str  # of its manifest
    file: str  # digest of its content
    size: int  # bytes
    references: tuple[str, ...] = ()  # the references that it was pulled by, as given
    signatures: tuple[Signature, ...] = ()


class _Artifact(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int
    artifact_type: str | None = None
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] | None = None


class Profiles:
    """The profiles of one image store. Use it only on the store's event loop."""

    def __init__(self, directory: Path, registries: Registries, trust: Trust) -> None:
        """Raises ImageError if the directory cannot be read."""
        self._directory = directory
        self._registries = registries
        self._trust = trust
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            self._known = {info.digest: info for info in self._load()}
        except (OSError, msgspec.DecodeError) as error:
            raise ImageError(f"read profiles below {directory}: {error}") from error

    def all(self) -> list[ProfileInfo]:
        return list(self._known.values())

    async def accepted(self, reference: str) -> bytes | None:
        """Return the file of the profile that a reference with digest names; None if it was not pulled.

        The present policy is applied to this reference: acceptance of another repository's reference to the same digest
        does not count. Raises SignatureRefused, InvalidConfiguration, InvalidReference, and ImageError if the file is
        unreadable or damaged.
        """
        wanted = parse_reference(reference)
        info = self._known.get(wanted.digest)
        if info is None:
            return None
        await self._require(wanted, info.signatures, self._trust.policy().for_reference(wanted))
        return await asyncio.to_thread(self._read, info)

    def _read(self, info: ProfileInfo) -> bytes:
        path = self._file(info.digest)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ImageError(f"read profile {path}: {error.strerror}") from error
        if digest_of(content) != info.file:
            raise ImageError(f"read profile {path}: it is damaged: remove it and pull it again")
        return content

    async def pull(self, reference: str, media_type: str, credentials: Credentials | None, check: Check) -> bool:
        """Pull a profile. Returns True if it was in the store and no registry was asked.

        Its manifest must have the type `media_type`; `check` is called with the content before it is stored. Raises
        what `ImageStore.pull` does, InvalidReference for a reference without digest, and what `check` raises.
        """
        wanted = parse_reference(reference)
        if not wanted.digest:
            raise InvalidImage(f"pull profile {reference}: the reference must have a digest")
        async with self._locks[wanted.digest]:
            requirements = self._trust.policy().for_reference(wanted)
            known = self._known.get(wanted.digest)
            if known is not None and await self._is_accepted(wanted, known, requirements):
                await self._keep(known, reference)
                return True
            conf = await asyncio.to_thread(self._registries.read)
            origin = self._registries.origin(conf, wanted, credentials)
            await self._keep(await self._fetch(origin, wanted, media_type, check, requirements), reference)
            return False

    async def remove(self, digest: str) -> None:
        """Remove a profile; an unknown one is no error. Containers keep their copies."""
        async with self._locks[digest]:
            if self._known.pop(digest, None) is not None:
                await asyncio.to_thread(self._unlink, digest)

    async def _is_accepted(self, reference: Reference, known: ProfileInfo, requirements: Requirements) -> bool:
        """Return whether the stored signatures suffice. If not, the reference's own registry may have others."""
        try:
            await self._require(reference, known.signatures, requirements)
        except SignatureRefused:
            if any(isinstance(requirement, Reject) for requirement in requirements):
                raise
            return False
        return True

    async def _require(self, reference: Reference, signatures: Sequence[Signature], requirements: Requirements) -> None:
        await self._trust.require(reference, (reference.digest,), signatures, requirements)

    async def _fetch(
        self, origin: Origin, reference: Reference, media_type: str, check: Check, requirements: Requirements
    ) -> ProfileInfo:
        layer = await origin.manifest(reference.digest, lambda raw, _: _only_layer(raw, media_type, str(reference)))
        signatures: tuple[Signature, ...] = ()
        if any(not isinstance(requirement, Accept) for requirement in requirements):
            signatures = await self._trust.signatures(origin, reference, (reference.digest,), requirements)
        await self._require(reference, signatures, requirements)
        if layer.size > PROFILE_LIMIT:
            raise InvalidImage(f"pull profile {reference}: {layer.size} bytes, over the limit of {PROFILE_LIMIT}")
        content = await origin.document(layer, PROFILE_LIMIT)
        await asyncio.to_thread(check, content)
        if len(self._known) >= _PROFILES and reference.digest not in self._known:
            raise ImageError(f"keep profile {reference}: the store is full with {_PROFILES} profiles: remove some")
        await asyncio.to_thread(self._write, self._file(reference.digest), content)
        return ProfileInfo(reference.digest, layer.digest, len(content), signatures=signatures)

    async def _keep(self, info: ProfileInfo, reference: str) -> None:
        before = self._known.get(info.digest, info)
        # The signatures that were just verified come first; the others, for other repositories, follow.
        signatures = tuple(dict.fromkeys((*info.signatures, *before.signatures)))[:KEPT_LIMIT]
        if reference in before.references and before.signatures == signatures:
            return
        named = (*(known for known in before.references if known != reference), reference)[-_REFERENCES:]
        kept = msgspec.structs.replace(info, references=named, signatures=signatures)
        await asyncio.to_thread(self._write, self._record(info.digest), msgspec.json.encode(kept))
        self._known[info.digest] = kept

    def _load(self) -> list[ProfileInfo]:
        found = []
        for path in self._directory.iterdir():
            if path.suffix == ".record":
                found.append(msgspec.json.decode(path.read_bytes(), type=ProfileInfo))
            elif not path.with_suffix(".record").exists():
                path.unlink()  # left by an interrupted pull or removal
        return found

    def _file(self, digest: str) -> Path:
        return self._directory / f"{digest.partition(':')[2]}.json"

    def _record(self, digest: str) -> Path:
        return self._file(digest).with_suffix(".record")

    def _write(self, path: Path, content: bytes) -> None:
        """Write a file atomically and durably. Raises ImageError."""
        draft = path.with_suffix(".new")
        try:
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.rename(path)
            sync_directory(self._directory)
        except OSError as error:
            raise ImageError(f"write {path}: {error.strerror}") from error

    def _unlink(self, digest: str) -> None:
        # The record first: a file without a record is garbage.
        for path in (self._record(digest), self._file(digest)):
            path.unlink(missing_ok=True)
        sync_directory(self._directory)


def _only_layer(raw: bytes, media_type: str, what: str) -> Descriptor:
    try:
        artifact = decode(raw, _Artifact)
    except Malformed as error:
        raise InvalidImage(f"parse manifest of profile {what}: {error}") from error
    configured = artifact.config.media_type if artifact.config else ""
    if media_type not in (artifact.artifact_type, configured):
        found = artifact.artifact_type or configured or "no type"
        raise InvalidImage(f"pull profile {what}: its type is {found}, not {media_type}")
    layers = artifact.layers or ()
    if len(layers) != 1:
        raise InvalidImage(f"pull profile {what}: it has {len(layers)} layers; a profile has one")
    return checked(layers[0], what)
