"""Images in files: an OCI image layout (a directory or a tar) and what `docker save` writes. Blocking I/O."""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from image.errors import DigestMismatch, InvalidImage
from image.manifest import (
    CONFIG_LIMIT,
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    INDEX_TYPES,
    MANIFEST_LIMIT,
    OCI_INDEX,
    Blob,
    Configuration,
    Descriptor,
    Index,
    Manifest,
    Platform,
    choose,
    described_blobs,
    digest_of,
    parse_configuration,
    parse_manifest,
    require_platform,
)

_MEMBER_LIMIT = 100_000
_NESTING = 4  # indexes in indexes
_NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


@dataclass(frozen=True, slots=True)
class ArchivedImage:
    """An image found in an archive; `members[i]` is where the blob of layer i lies."""

    names: tuple[str, ...]  # as written there, not normalised
    manifest: bytes
    configuration: Configuration
    members: tuple[str, ...]
    blobs: tuple[Blob, ...]


class Archive(Protocol):
    """A place with named members."""

    path: Path

    def has(self, member: str) -> bool: ...

    def size(self, member: str) -> int: ...

    def open(self, member: str) -> int:
        """A new descriptor, positioned at the member's first byte. Raises InvalidImage when there is none."""

    def close(self) -> None: ...


class _Directory:
    def __init__(self, path: Path) -> None:
        self.path = path

    def has(self, member: str) -> bool:
        return (self.path / member).is_file()

    def size(self, member: str) -> int:
        return (self.path / member).stat().st_size

    def open(self, member: str) -> int:
        try:
            return os.open(self.path / member, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidImage(f"read {self.path}: {member}: {error.strerror}") from error

    def close(self) -> None:
        pass


class _Tar:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            self._tar = tarfile.open(path, "r:")  # noqa: SIM115 (closed by close)
            for count, member in enumerate(self._tar):
                if count == _MEMBER_LIMIT:
                    raise InvalidImage(f"read {path}: more than {_MEMBER_LIMIT} members")
                self._members[posixpath.normpath(member.name)] = member
        except (tarfile.TarError, EOFError) as error:
            raise InvalidImage(f"read {path}: not an uncompressed tar archive: {error}") from error

    def has(self, member: str) -> bool:
        return member in self._members

    def size(self, member: str) -> int:
        return self._member(member).size

    def open(self, member: str) -> int:
        found = self._member(member)
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        os.lseek(descriptor, found.offset_data, os.SEEK_SET)
        return descriptor

    def close(self) -> None:
        self._tar.close()

    def _member(self, name: str) -> tarfile.TarInfo:
        """The regular file `name`, through one link: old `docker save` links a layer that two images share."""
        member = self._members.get(posixpath.normpath(name))
        if member is not None and member.issym():
            member = self._members.get(posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname)))
        elif member is not None and member.islnk():
            member = self._members.get(posixpath.normpath(member.linkname))
        if member is None or not member.isreg() or member.issparse():
            raise InvalidImage(f"read {self.path}: it has no regular file {name}")
        return member


def open_archive(path: Path) -> Archive:
    """Raises InvalidImage when there is nothing of the kind at `path`."""
    try:
        return _Directory(path) if path.is_dir() else _Tar(path)
    except OSError as error:
        raise InvalidImage(f"read {path}: {error.strerror}") from error


def archived_images(archive: Archive, platforms: Sequence[Platform]) -> list[ArchivedImage]:
    """The images in `archive` that run on one of `platforms`. Raises InvalidImage, DigestMismatch."""
    if archive.has("oci-layout"):
        return _layout_images(archive, platforms)
    if archive.has("manifest.json"):
        return _docker_images(archive, platforms)
    raise InvalidImage(f"read {archive.path}: neither an OCI layout nor a docker-archive")


def _read(archive: Archive, member: str, limit: int) -> bytes:
    if not archive.has(member):
        raise InvalidImage(f"read {archive.path}: {member} is missing")
    size = archive.size(member)
    if size > limit:
        raise InvalidImage(f"read {archive.path}: {member} has {size} bytes, over the limit of {limit}")
    with open(archive.open(member), "rb") as file:
        return file.read(size)


# --- OCI layouts (image-spec, image-layout.md)


def _layout_images(archive: Archive, platforms: Sequence[Platform]) -> list[ArchivedImage]:
    what = str(archive.path)
    index = parse_manifest(_read(archive, "index.json", MANIFEST_LIMIT), OCI_INDEX, what)
    if not isinstance(index, Index):
        raise InvalidImage(f"read {what}: index.json is not an index")
    found = []
    for descriptor in index.manifests:
        if descriptor.media_type in INDEX_TYPES or descriptor.platform is None or descriptor.platform in platforms:
            names = (descriptor.annotations or {}).get
            name = next(filter(None, map(names, _NAME_ANNOTATIONS)), "")
            # A bare tag, as some tools write, names no image.
            found.append(_layout_image(archive, descriptor, (name,) if "/" in name or ":" in name else (), platforms))
    if not found:
        choose(index, platforms, what)
        raise InvalidImage(f"read {what}: the layout has no image for {platforms[0]}")
    return found


def _layout_image(
    archive: Archive, descriptor: Descriptor, names: tuple[str, ...], platforms: Sequence[Platform]
) -> ArchivedImage:
    what = f"{descriptor.digest} in {archive.path}"
    for _ in range(_NESTING):
        raw = _verified(archive, descriptor, MANIFEST_LIMIT)
        manifest = parse_manifest(raw, descriptor.media_type, what)
        if isinstance(manifest, Manifest):
            break
        descriptor = choose(manifest, platforms, what)
    else:
        raise InvalidImage(f"read {what}: indexes nested deeper than {_NESTING}")
    configuration = parse_configuration(_verified(archive, manifest.config, CONFIG_LIMIT), what)
    require_platform(configuration, platforms, what)
    members = tuple(_blob_path(layer.digest) for layer in manifest.layers)
    return ArchivedImage(names, raw, configuration, members, described_blobs(manifest, configuration, what))


def _blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _verified(archive: Archive, descriptor: Descriptor, limit: int) -> bytes:
    content = _read(archive, _blob_path(descriptor.digest), limit)
    if digest_of(content) != descriptor.digest:
        raise DigestMismatch(f"read {archive.path}: blob {descriptor.digest} has digest {digest_of(content)}")
    return content


# --- docker save


class _DockerImage(msgspec.Struct, frozen=True, rename="pascal"):
    config: str
    layers: tuple[str, ...]
    repo_tags: tuple[str, ...] | None = None


def _docker_images(archive: Archive, platforms: Sequence[Platform]) -> list[ArchivedImage]:
    raw = _read(archive, "manifest.json", MANIFEST_LIMIT)
    try:
        images = msgspec.json.decode(raw, type=tuple[_DockerImage, ...])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidImage(f"read {archive.path}: manifest.json: {error}") from error
    return [_docker_image(archive, image, platforms) for image in images]


def _docker_image(archive: Archive, image: _DockerImage, platforms: Sequence[Platform]) -> ArchivedImage:
    what = f"{image.config} in {archive.path}"
    configuration = parse_configuration(_read(archive, image.config, CONFIG_LIMIT), what)
    require_platform(configuration, platforms, what)
    if len(image.layers) != len(configuration.diff_ids):
        raise InvalidImage(f"read {what}: {len(image.layers)} layers and {len(configuration.diff_ids)} diff ids")
    pairs = zip(image.layers, configuration.diff_ids, strict=True)
    blobs = tuple(Blob("", archive.size(member), diff_id) for member, diff_id in pairs)
    return ArchivedImage(
        image.repo_tags or (), _docker_manifest(configuration, blobs), configuration, image.layers, blobs
    )


def _docker_manifest(configuration: Configuration, blobs: Sequence[Blob]) -> bytes:
    """The manifest of an image that came without one: its layers as they are, uncompressed."""
    config = {"mediaType": DOCKER_CONFIG, "digest": configuration.digest, "size": len(configuration.raw)}
    layers = [{"mediaType": DOCKER_LAYER, "digest": blob.diff_id, "size": blob.size} for blob in blobs]
    document = {"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": config, "layers": layers}
    return msgspec.json.encode(document)
