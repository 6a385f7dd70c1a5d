"""Parses and validates manifests and indexes, and chooses by platform. No I/O.

Accepts OCI image-spec 1.1 and Docker schema 2. Refuses schema 1 and artifacts, with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import msgspec

from image.configuration import Configuration, parse_configuration
from image.documents import Malformed, decode
from image.errors import InvalidImage, NotAnImage, OtherPlatform
from image.platforms import Platform
from image.reference import digest_of, is_digest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST, OCI_INDEX, DOCKER_LIST)
INDEX_TYPES = (OCI_INDEX, DOCKER_LIST)
LAYER_TYPE = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar|docker\.image\.rootfs\.(?:foreign\.)?diff\.tar)"
    r"(?:[.+](?:gzip|zstd))?"
)
CONFIG_TYPES = (OCI_CONFIG, DOCKER_CONFIG)

# Registries must accept manifests of 4 MiB (distribution-spec, "Pushing Manifests"); some accept larger ones.
MANIFEST_LIMIT = 8 << 20  # bytes
NESTING = 4  # depth of nested indexes
_LAYERS_LIMIT = 500  # the kernel's OVL_MAX_STACK, overlayfs' limit

# Docker 1.10 pushed configurations with the first type; parsing shows whether it is a configuration.
_UNTYPED = ("application/octet-stream", "")
_UNNAMED_LIMIT = 8  # index entries without a platform to look into
_IMAGE_LAYER = "application/vnd.oci.image.layer."
_FOREIGN = re.compile(r"application/vnd\.(oci\.image\.layer\.nondistributable|docker\.image\.rootfs\.foreign)\..*")


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A typed, sized pointer to content (OCI image-spec, descriptor.md)."""

    digest: str
    size: int
    media_type: str = ""
    platform: Platform | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str = ""

    @property
    def foreign(self) -> bool:
        """Whether it is a layer that the registry may not have (image-spec layer.md, "Non-Distributable Layers")."""
        return _FOREIGN.fullmatch(self.media_type) is not None


class _Document(msgspec.Struct, frozen=True, rename="camel"):
    """A manifest or an index, before it is known which."""

    schema_version: int = 2
    media_type: str = ""
    artifact_type: str = ""
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] | None = None
    manifests: tuple[Descriptor, ...] | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image's manifest, with the bytes that its digest covers."""

    raw: bytes
    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def digest(self) -> str:
        return digest_of(self.raw)


@dataclass(frozen=True, slots=True)
class Index:
    manifests: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Blob:
    """A layer as it is transferred.

    Without `digest` ("", as in a docker-archive) only the content's digest, `diff_id`, is verified; an archive that is
    no layer has neither.
    """

    digest: str
    size: int  # bytes
    diff_id: str


def described_blobs(manifest: Manifest, configuration: Configuration, what: str) -> tuple[Blob, ...]:
    """Return a manifest's layers with the configuration's diff ids. Raises InvalidImage if their numbers differ."""
    if len(manifest.layers) != len(configuration.diff_ids):
        counts = f"{len(manifest.layers)} layers and {len(configuration.diff_ids)} diff ids"
        raise InvalidImage(f"pull {what}: {counts}")
    pairs = zip(manifest.layers, configuration.diff_ids, strict=True)
    return tuple(Blob(layer.digest, layer.size, diff_id) for layer, diff_id in pairs)


def parse_manifest(raw: bytes, content_type: str, what: str) -> Manifest | Index:
    """Parse a manifest or index from a registry or layout; `what` names it in errors. Raises InvalidImage."""
    try:
        document = decode(raw, _Document)
    except Malformed as error:
        raise InvalidImage(f"parse manifest of {what}: {error}") from None
    if document.schema_version != 2:
        raise InvalidImage(f"parse manifest of {what}: Docker schema {document.schema_version} is not supported")
    media_type = document.media_type or content_type.partition(";")[0].strip()
    # Readers could interpret a document that is both in different ways (CVE-2021-41190).
    if document.manifests is not None and (document.layers is not None or document.config is not None):
        raise InvalidImage(f"parse manifest of {what}: it is both an image manifest and an index")
    if document.manifests is not None or (document.config is None and media_type in INDEX_TYPES):
        _refuse_type(media_type, INDEX_TYPES, what)
        return Index(tuple(checked(d, what) for d in document.manifests or ()))
    if document.config is None:
        raise InvalidImage(f"parse manifest of {what}: neither an image manifest nor an index")
    _refuse_type(media_type, (OCI_MANIFEST, DOCKER_MANIFEST), what)
    if document.config.media_type not in (CONFIG_TYPES if document.artifact_type else (*CONFIG_TYPES, *_UNTYPED)):
        kind = document.artifact_type or document.config.media_type
        raise NotAnImage(f"pull {what}: it is an artifact of type {kind}, not an image")
    layers = document.layers or ()
    require_mountable(len(layers), what)
    for layer in layers:
        _refuse_layer(layer, what)
    return Manifest(raw, checked(document.config, what), tuple(checked(d, what) for d in layers))


def _refuse_type(media_type: str, wanted: Sequence[str], what: str) -> None:
    # Docker's registry serves OCI manifests without mediaType under this generic type.
    if media_type not in (*wanted, "application/json", "application/octet-stream", ""):
        raise InvalidImage(f"parse manifest of {what}: media type {media_type} is not supported")


def require_mountable(layers: int, what: str) -> None:
    """Refuse an image with more layers than can be mounted, before any is fetched. Raises InvalidImage."""
    if layers > _LAYERS_LIMIT:
        limit = f"overlayfs can mount at most {_LAYERS_LIMIT}: build it with fewer, or squash it"
        raise InvalidImage(f"pull {what}: it has {layers} layers, {limit}")


def _refuse_layer(layer: Descriptor, what: str) -> None:
    if not LAYER_TYPE.fullmatch(layer.media_type):
        # Some documents have an image's type without being images, for example cosign's signatures.
        kind = InvalidImage if layer.media_type.startswith(_IMAGE_LAYER) else NotAnImage
        raise kind(f"pull {what}: layer {layer.digest} has unsupported type {layer.media_type}")


def checked(descriptor: Descriptor, what: str) -> Descriptor:
    """Return the descriptor if its digest can safely become part of a URL or path. Raises InvalidImage."""
    if not is_digest(descriptor.digest):
        raise InvalidImage(f"parse manifest of {what}: {descriptor.digest[:80]!r} is not a sha256 digest")
    if descriptor.size < 0:
        raise InvalidImage(f"parse manifest of {what}: {descriptor.digest} has size {descriptor.size}")
    return descriptor


# --- platforms


DOCUMENTS_LIMIT = 32  # manifests and configurations to read for one choice


def choose(
    document: Manifest | Index, platforms: Sequence[Platform], what: str, depth: int = NESTING
) -> Generator[Descriptor, bytes, Manifest]:
    """Choose the manifest for the best of `platforms`, through nested indexes.

    A generator: it yields descriptors of manifests or configurations to read, and is sent their bytes. An index's
    statement about an entry's platform is trusted; without one the configuration's is. Raises InvalidImage,
    OtherPlatform.
    """
    if isinstance(document, Manifest):
        return document
    if not depth:
        raise InvalidImage(f"pull {what}: indexes nested deeper than {NESTING}")
    offered = [d for d in document.manifests if d.media_type in MANIFEST_TYPES and not d.artifact_type]
    if (named := _named(offered, platforms)) is not None:
        return (yield from choose((yield from _inner(named, what)), platforms, what, depth - 1))
    unnamed = [d for d in offered if d.platform in (None, Platform())]
    for descriptor in unnamed[:_UNNAMED_LIMIT]:
        try:
            inner = yield from _inner(descriptor, what)
            found = yield from choose(inner, platforms, what, depth - 1)
        except (NotAnImage, OtherPlatform):
            continue
        if isinstance(inner, Index) or len(offered) == 1:
            return found
        configuration = parse_configuration((yield found.config), what)
        if configuration.platform.suits(platforms):
            return found
    have = ", ".join(sorted({str(d.platform) for d in offered})) or "nothing"
    raise OtherPlatform(f"pull {what}: no image for {platforms[0]}; the index has {have}")


def _named(offered: Sequence[Descriptor], platforms: Sequence[Platform]) -> Descriptor | None:
    """Return the entry for the best of `platforms`; the first one if there are several."""
    for platform in platforms:
        for descriptor in offered:
            if descriptor.platform is not None and descriptor.platform.normalised == platform:
                return descriptor
    return None


def _inner(descriptor: Descriptor, what: str) -> Generator[Descriptor, bytes, Manifest | Index]:
    raw = yield descriptor
    return parse_manifest(raw, descriptor.media_type, what)
