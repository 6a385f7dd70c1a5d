"""Manifests, indexes and image configurations: parsed, validated, and chosen by platform. No I/O.

Accepted: OCI image-spec 1.1 and Docker schema 2. Refused with a reason: schema 1, artifacts, foreign layers.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from image.errors import InvalidImage
from image.model import ImageConfig
from image.reference import is_digest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST, OCI_INDEX, DOCKER_LIST)
INDEX_TYPES = (OCI_INDEX, DOCKER_LIST)
LAYER_TYPES = (
    *(OCI_LAYER, f"{OCI_LAYER}+gzip", f"{OCI_LAYER}+zstd"),
    *(DOCKER_LAYER, f"{DOCKER_LAYER}.gzip", f"{DOCKER_LAYER}.zstd"),
)

MANIFEST_LIMIT = 4 << 20  # bytes
CONFIG_LIMIT = 8 << 20  # bytes

_FOREIGN = re.compile(r"application/vnd\.(oci\.image\.layer\.nondistributable|docker\.image\.rootfs\.foreign)\..*")


class Platform(msgspec.Struct, frozen=True):
    """What an image runs on, in Go's words (linux, amd64, v2)."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A typed, sized pointer to content (OCI image-spec, descriptor.md)."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str | None = None


class _Document(msgspec.Struct, frozen=True, rename="camel"):
    """A manifest or an index, not yet known which."""

    schema_version: int
    media_type: str = ""
    artifact_type: str = ""
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] | None = None
    manifests: tuple[Descriptor, ...] | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest of an image, with the very bytes its digest is of."""

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
class Configuration:
    """An image's configuration, with the very bytes its digest is of."""

    raw: bytes
    config: ImageConfig
    diff_ids: tuple[str, ...]
    created: int  # nanoseconds since the epoch, 0 when absent

    @property
    def digest(self) -> str:
        return digest_of(self.raw)

    @property
    def chain_ids(self) -> tuple[str, ...]:
        """One id for each layer that also covers all layers under it (OCI image-spec, config.md, "Layer ChainID")."""
        chain: list[str] = []
        for diff_id in self.diff_ids:
            chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
        return tuple(chain)


@dataclass(frozen=True, slots=True)
class Blob:
    """A layer as it comes. A digest of "" (docker-archive has none) leaves only the content's, `diff_id`, to verify;
    an archive that is no layer has neither."""

    digest: str
    size: int  # bytes
    diff_id: str


def described_blobs(manifest: Manifest, configuration: Configuration, what: str) -> tuple[Blob, ...]:
    """The layers of a manifest with the diff ids of its configuration. Raises InvalidImage when they do not pair."""
    if len(manifest.layers) != len(configuration.diff_ids):
        counts = f"{len(manifest.layers)} layers and {len(configuration.diff_ids)} diff ids"
        raise InvalidImage(f"pull {what}: {counts}")
    pairs = zip(manifest.layers, configuration.diff_ids, strict=True)
    return tuple(Blob(layer.digest, layer.size, diff_id) for layer, diff_id in pairs)


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def parse_manifest(raw: bytes, content_type: str, what: str) -> Manifest | Index:
    """Parse what a registry or layout gave for `what` (named in errors). Raises InvalidImage."""
    try:
        document = msgspec.json.decode(raw, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidImage(f"parse manifest of {what}: {error}") from error
    if document.schema_version != 2:
        raise InvalidImage(f"parse manifest of {what}: Docker schema {document.schema_version} is not supported")
    media_type = document.media_type or content_type.partition(";")[0].strip()
    # One document that is both would mean different things to different readers (CVE-2021-41190).
    if document.manifests is not None and (document.layers is not None or document.config is not None):
        raise InvalidImage(f"parse manifest of {what}: it is both an image manifest and an index")
    if document.manifests is not None:
        _refuse_type(media_type, INDEX_TYPES, what)
        return Index(tuple(checked(d, what) for d in document.manifests))
    if document.config is None or document.layers is None:
        raise InvalidImage(f"parse manifest of {what}: neither an image manifest nor an index")
    _refuse_type(media_type, (OCI_MANIFEST, DOCKER_MANIFEST), what)
    if document.config.media_type not in (OCI_CONFIG, DOCKER_CONFIG):
        kind = document.artifact_type or document.config.media_type
        raise InvalidImage(f"pull {what}: it is an artifact of type {kind}, not an image")
    for layer in document.layers:
        _refuse_layer(layer, what)
    return Manifest(raw, checked(document.config, what), tuple(checked(d, what) for d in document.layers))


def _refuse_type(media_type: str, wanted: Sequence[str], what: str) -> None:
    # Docker's registry serves an OCI manifest without mediaType under this neutral name.
    if media_type not in (*wanted, "application/json", "application/octet-stream", ""):
        raise InvalidImage(f"parse manifest of {what}: media type {media_type} is not supported")


def _refuse_layer(layer: Descriptor, what: str) -> None:
    if _FOREIGN.fullmatch(layer.media_type):
        raise InvalidImage(f"pull {what}: layer {layer.digest} is foreign (non-distributable): {layer.media_type}")
    if layer.media_type not in LAYER_TYPES:
        raise InvalidImage(f"pull {what}: layer {layer.digest} has unsupported type {layer.media_type}")


def checked(descriptor: Descriptor, what: str) -> Descriptor:
    """The descriptor, fit to be asked for: its digest becomes part of a URL or path. Raises InvalidImage."""
    if not is_digest(descriptor.digest):
        raise InvalidImage(f"parse manifest of {what}: {descriptor.digest[:80]!r} is not a sha256 digest")
    if descriptor.size < 0:
        raise InvalidImage(f"parse manifest of {what}: {descriptor.digest} has size {descriptor.size}")
    return descriptor


# --- platforms

_ARCHITECTURES = {
    "x86_64": ("amd64", ("", "v1")),
    "aarch64": ("arm64", ("", "v8")),
    "armv8l": ("arm", ("v8", "v7", "v6", "v5", "")),
    "armv7l": ("arm", ("v7", "v6", "v5", "")),
    "armv6l": ("arm", ("v6", "v5", "")),
    "i686": ("386", ("",)),
    "ppc64le": ("ppc64le", ("",)),
    "s390x": ("s390x", ("",)),
    "riscv64": ("riscv64", ("",)),
    "loongarch64": ("loong64", ("",)),
}


def node_platforms(machine: str = "") -> tuple[Platform, ...]:
    """The platforms this machine runs, best first. `machine` is uname's; "" asks the kernel."""
    machine = machine or os.uname().machine
    architecture, variants = _ARCHITECTURES.get(machine, (machine, ("",)))
    return tuple(Platform("linux", architecture, variant) for variant in variants)


def choose(index: Index, platforms: Sequence[Platform], what: str) -> Descriptor:
    """The entry of `index` for the best of `platforms`; one that names no platform counts as last resort.

    Raises InvalidImage when none fits.
    """
    offered = [d for d in index.manifests if d.media_type in MANIFEST_TYPES and not d.artifact_type]
    for platform in platforms:
        for descriptor in offered:
            if descriptor.platform == platform:
                return descriptor
    for descriptor in offered:
        if descriptor.platform is None:
            return descriptor
    have = ", ".join(sorted({str(d.platform) for d in offered})) or "nothing"
    raise InvalidImage(f"pull {what}: no image for {platforms[0]}; the index has {have}")


# --- configurations


class _RuntimeConfig(msgspec.Struct, frozen=True, rename="pascal"):
    user: str | None = None
    env: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    working_dir: str | None = None
    volumes: dict[str, Any] | None = None
    exposed_ports: dict[str, Any] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | None = None


class _RootFS(msgspec.Struct, frozen=True):
    type: str = "layers"
    diff_ids: tuple[str, ...] | None = None


class _ImageDocument(msgspec.Struct, frozen=True):
    rootfs: _RootFS
    architecture: str = ""
    os: str = ""
    variant: str = ""
    created: str | None = None
    config: _RuntimeConfig | None = None


def parse_configuration(raw: bytes, what: str) -> Configuration:
    """Parse an image configuration (OCI image-spec, config.md). Raises InvalidImage."""
    try:
        document = msgspec.json.decode(raw, type=_ImageDocument)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidImage(f"parse configuration of {what}: {error}") from error
    diff_ids = document.rootfs.diff_ids or ()
    for diff_id in diff_ids:
        if not is_digest(diff_id):
            raise InvalidImage(f"parse configuration of {what}: diff id {diff_id[:80]!r} is not a sha256 digest")
    run = document.config or _RuntimeConfig()
    config = ImageConfig(
        architecture=document.architecture,
        os=document.os,
        user=run.user or "",
        env=run.env or (),
        entrypoint=run.entrypoint or (),
        cmd=run.cmd or (),
        working_dir=run.working_dir or "",
        volumes=tuple(sorted(run.volumes or ())),
        exposed_ports=tuple(sorted(run.exposed_ports or ())),
        labels=run.labels or {},
        stop_signal=run.stop_signal or "",
    )
    return Configuration(raw, config, diff_ids, _nanoseconds(document.created or ""))


def require_platform(configuration: Configuration, platforms: Sequence[Platform], what: str) -> None:
    """Refuse an image that says it is for another machine; one that does not say is taken at its word."""
    config = configuration.config
    wanted = platforms[0]
    if config.os not in ("", wanted.os) or config.architecture not in ("", wanted.architecture):
        raise InvalidImage(f"pull {what}: it is for {config.os}/{config.architecture}, this node runs {wanted}")


def _nanoseconds(text: str) -> int:
    """RFC 3339 to nanoseconds since the epoch; 0 for what is no time (seen in the wild: "", year 0001)."""
    match = re.fullmatch(r"(.{19})(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:\d\d)", text)
    if match is None:
        return 0
    try:
        whole = datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00")).astimezone(UTC)
    except (ValueError, OverflowError):
        return 0
    seconds = int(whole.timestamp())
    return max(0, seconds * 1_000_000_000 + int((match[2] or "").ljust(9, "0")))
