"""Images in files: an OCI image layout (a directory or a tar) and what `docker save` writes. Blocking I/O."""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from image.documents import Malformed, decode
from image.errors import DigestMismatch, InvalidImage, NotAnImage, OtherPlatform
from image.manifest import (
    CONFIG_LIMIT,
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    DOCUMENTS_LIMIT,
    INDEX_TYPES,
    MANIFEST_LIMIT,
    MANIFEST_TYPES,
    OCI_INDEX,
    Blob,
    Configuration,
    Descriptor,
    Index,
    Manifest,
    choose,
    described_blobs,
    digest_of,
    doubt,
    parse_configuration,
    parse_manifest,
    require_mountable,
)
from image.platforms import Platform
from image.unpack.walk import open_beneath

_MEMBER_LIMIT = 100_000
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # gzip, zstd
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}
_NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


@dataclass(frozen=True, slots=True)
class ArchivedImage:
    """An image found in an archive; `members[i]` is where the blob of layer i lies."""

    names: tuple[str, ...]  # as written there, not normalised
    manifest: bytes
    configuration: Configuration
    members: tuple[str, ...]
    blobs: tuple[Blob, ...]
    doubt: str = ""  # why it may not run here


class Archive(Protocol):
    """A place with named members."""

    path: Path

    def has(self, member: str) -> bool: ...

    def size(self, member: str) -> int: ...

    def open(self, member: str) -> int:
        """A new descriptor, positioned at the member's first byte. Raises InvalidImage when there is none."""

    def close(self) -> None: ...


class _Directory:
    """Its members are named by documents in it: what they name is in it, too, whatever links there are."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._root = descriptor

    def has(self, member: str) -> bool:
        try:
            os.close(self.open(member))
        except InvalidImage:
            return False
        return True

    def size(self, member: str) -> int:
        descriptor = self.open(member)
        try:
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def open(self, member: str) -> int:
        try:
            descriptor = open_beneath(self._root, os.fsencode(member))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise InvalidImage(f"read {self.path}: {member}: {reason}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise InvalidImage(f"read {self.path}: {member}: not a regular file")
        return descriptor

    def close(self) -> None:
        os.close(self._root)


class _Tar:
    """A tar in the open file `descriptor`, called `path`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._file = open(descriptor, "rb")  # noqa: SIM115 (closed by close)
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            self._read()
        except (tarfile.TarError, EOFError) as error:
            self.close()
            raise InvalidImage(f"read {path}: not a tar archive: {error}") from error
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        with tarfile.open(fileobj=self._file, mode="r:") as tar:
            for count, member in enumerate(tar):
                if count == _MEMBER_LIMIT:
                    raise InvalidImage(f"read {self.path}: more than {_MEMBER_LIMIT} members")
                self._members[posixpath.normpath(member.name)] = member

    def has(self, member: str) -> bool:
        return member in self._members

    def size(self, member: str) -> int:
        return self._member(member).size

    def open(self, member: str) -> int:
        found = self._member(member)
        # An open of its own, since it has a position of its own; the file may have no name (any more).
        descriptor = os.open(f"/proc/self/fd/{self._file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
        os.lseek(descriptor, found.offset_data, os.SEEK_SET)
        return descriptor

    def close(self) -> None:
        self._file.close()

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


def open_file(path: Path) -> int:
    """The archive at `path`, to be given to `open_archive`. Raises InvalidImage when there is nothing of the kind."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidImage(f"read {path}: {error.strerror}") from error
    if stat.S_IFMT(os.fstat(descriptor).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
        os.close(descriptor)
        raise InvalidImage(f"read {path}: neither a file nor a directory")
    return descriptor


def is_compressed(descriptor: int) -> bool:
    """Whether it is a file compressed with gzip or zstd."""
    return stat.S_ISREG(os.fstat(descriptor).st_mode) and os.pread(descriptor, 4, 0).startswith(_COMPRESSED)


def open_archive(path: Path, descriptor: int) -> Archive:
    """The archive that `descriptor`, which is closed with it, is open on; `path` is its name in errors.

    Raises InvalidImage when it is none.
    """
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        return _Directory(path, descriptor)
    beginning = os.pread(descriptor, 8, 0)
    if other := next((name for magic, name in _OTHERS.items() if beginning.startswith(magic)), ""):
        os.close(descriptor)
        raise InvalidImage(f"read {path}: it is compressed with {other}; decompress it, or use gzip or zstd")
    return _Tar(path, descriptor)


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
    found: list[ArchivedImage] = []
    doubtful: list[ArchivedImage] = []
    reason: InvalidImage | None = None
    for descriptor in index.manifests:
        names = (descriptor.annotations or {}).get
        name = next(filter(None, map(names, _NAME_ANNOTATIONS)), "")
        # A bare tag, as some tools write, names no image.
        called = (name,) if "/" in name or ":" in name else ()
        try:
            image = _layout_image(archive, descriptor, called, platforms)
        except (NotAnImage, OtherPlatform) as error:
            reason = reason or error
        else:
            (doubtful if image.doubt and descriptor.platform in (None, Platform()) else found).append(image)
    # What it is for is only what its configuration says: that is not to be trusted when there is nothing beside it.
    if not found and len(doubtful) == 1:
        return doubtful
    if not found:
        raise reason or OtherPlatform(f"read {what}: the layout has no image for {platforms[0]}")
    return found


def _layout_image(
    archive: Archive, descriptor: Descriptor, names: tuple[str, ...], platforms: Sequence[Platform]
) -> ArchivedImage:
    """The image of an entry. Raises NotAnImage and OtherPlatform for what may lie beside one."""
    what = f"{descriptor.digest} in {archive.path}"
    if descriptor.artifact_type or descriptor.media_type not in MANIFEST_TYPES:
        raise NotAnImage(f"read {what}: it is no image, but {descriptor.artifact_type or descriptor.media_type}")
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
    """A manifest or a configuration."""
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
    """The manifest of an image that came without one: its layers as they are, uncompressed."""
    config = {"mediaType": DOCKER_CONFIG, "digest": configuration.digest, "size": len(configuration.raw)}
    layers = [{"mediaType": DOCKER_LAYER, "digest": blob.diff_id, "size": blob.size} for blob in blobs]
    document = {"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": config, "layers": layers}
    return msgspec.json.encode(document)
