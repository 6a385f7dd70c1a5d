"""Reads images from OCI image layouts (directory or tar) and from what `docker save` writes. Blocking I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from image.archive.members import Archive
from image.configuration import CONFIG_LIMIT, Configuration, doubt, parse_configuration
from image.documents import Malformed, decode
from image.errors import DigestMismatch, InvalidImage, NotAnImage, OtherPlatform
from image.manifest import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    DOCUMENTS_LIMIT,
    INDEX_TYPES,
    MANIFEST_LIMIT,
    MANIFEST_TYPES,
    OCI_INDEX,
    Blob,
    Descriptor,
    Index,
    Manifest,
    choose,
    described_blobs,
    parse_manifest,
    require_mountable,
)
from image.platforms import Platform
from image.reference import digest_of

_NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


@dataclass(frozen=True, slots=True)
class ArchivedImage:
    """An image in an archive; `members[i]` is the member with layer i."""

    names: tuple[str, ...]  # as in the archive, not normalised
    manifest: bytes
    configuration: Configuration
    members: tuple[str, ...]
    blobs: tuple[Blob, ...]
    doubt: str = ""  # why it may not run here; "" if nothing is wrong


def archived_images(archive: Archive, platforms: Sequence[Platform]) -> list[ArchivedImage]:
    """Return the images in `archive` that run on one of `platforms`. Raises InvalidImage, DigestMismatch."""
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
    found: list[ArchivedImage] = []
    doubtful: list[ArchivedImage] = []
    reason: InvalidImage | None = None
    for descriptor in index.manifests:
        names = (descriptor.annotations or {}).get
        name = next(filter(None, map(names, _NAME_ANNOTATIONS)), "")
        # A bare tag, as some tools write it, names no image.
        called = (name,) if "/" in name or ":" in name else ()
        try:
            image = _layout_image(archive, descriptor, called, platforms)
        except (NotAnImage, OtherPlatform) as error:
            reason = reason or error
        else:
            (doubtful if image.doubt and descriptor.platform in (None, Platform()) else found).append(image)
    # An image whose only statement of a platform is its configuration is accepted if there is no other image.
    if not found and len(doubtful) == 1:
        return doubtful
    if not found:
        raise reason or OtherPlatform(f"read {what}: the layout has no image for {platforms[0]}")
    return found


def _layout_image(
    archive: Archive, descriptor: Descriptor, names: tuple[str, ...], platforms: Sequence[Platform]
) -> ArchivedImage:
    """Return the image of an index entry. Raises NotAnImage and OtherPlatform for entries that may lie beside it."""
    what = f"{descriptor.digest} in {archive.path}"
    if descriptor.artifact_type or descriptor.media_type not in MANIFEST_TYPES:
        raise NotAnImage(f"read {what}: it is not an image, but {descriptor.artifact_type or descriptor.media_type}")
    claimed = descriptor.platform or Platform()
    if descriptor.media_type not in INDEX_TYPES and not claimed.suits(platforms):
        raise OtherPlatform(f"read {what}: it is for {claimed}, this node runs {platforms[0]}")
    chosen = choose(parse_manifest(_verified(archive, descriptor), descriptor.media_type, what), platforms, what)
    try:
        wanted = next(chosen)
        for _ in range(DOCUMENTS_LIMIT):
            wanted = chosen.send(_verified(archive, wanted))
        raise InvalidImage(f"read {what}: more than {DOCUMENTS_LIMIT} manifests and configurations to choose from")
    except StopIteration as end:
        manifest: Manifest = end.value
    configuration = parse_configuration(_verified(archive, manifest.config), what)
    blobs = described_blobs(manifest, configuration, what)
    members = tuple(_blob_path(layer.digest) for layer in manifest.layers)
    claim = doubt(configuration, platforms, what)
    return ArchivedImage(names, manifest.raw, configuration, members, blobs, claim)


def _blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _verified(archive: Archive, descriptor: Descriptor) -> bytes:
    """Read and verify a manifest or a configuration."""
    content = _read(archive, _blob_path(descriptor.digest), max(MANIFEST_LIMIT, CONFIG_LIMIT))
    if digest_of(content) != descriptor.digest:
        raise DigestMismatch(f"read {archive.path}: blob {descriptor.digest} has digest {digest_of(content)}")
    return content


# --- docker save


class _DockerImage(msgspec.Struct, frozen=True, rename="pascal"):
    config: str
    layers: tuple[str, ...] = ()
    repo_tags: tuple[str, ...] = ()


def _docker_images(archive: Archive, platforms: Sequence[Platform]) -> list[ArchivedImage]:
    raw = _read(archive, "manifest.json", MANIFEST_LIMIT)
    try:
        images = decode(raw, tuple[_DockerImage, ...])
    except Malformed as error:
        raise InvalidImage(f"read {archive.path}: manifest.json: {error}") from error
    return [_docker_image(archive, image, platforms) for image in images]


def _docker_image(archive: Archive, image: _DockerImage, platforms: Sequence[Platform]) -> ArchivedImage:
    what = f"{image.config} in {archive.path}"
    require_mountable(len(image.layers), what)
    configuration = parse_configuration(_read(archive, image.config, CONFIG_LIMIT), what)
    if len(image.layers) != len(configuration.diff_ids):
        raise InvalidImage(f"read {what}: {len(image.layers)} layers and {len(configuration.diff_ids)} diff ids")
    pairs = zip(image.layers, configuration.diff_ids, strict=True)
    blobs = tuple(Blob("", archive.size(member), diff_id) for member, diff_id in pairs)
    manifest = _docker_manifest(configuration, blobs)
    claim = doubt(configuration, platforms, what)
    return ArchivedImage(image.repo_tags, manifest, configuration, image.layers, blobs, claim)


def _docker_manifest(configuration: Configuration, blobs: Sequence[Blob]) -> bytes:
    """Make a manifest for an image without one, with its uncompressed layers."""
    config = {"mediaType": DOCKER_CONFIG, "digest": configuration.digest, "size": len(configuration.raw)}
    layers = [{"mediaType": DOCKER_LAYER, "digest": blob.diff_id, "size": blob.size} for blob in blobs]
    document = {"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": config, "layers": layers}
    return msgspec.json.encode(document)
