"""Exports images of the store as OCI layouts and docker archives, from the original bytes. Blocking I/O."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from image.configuration import parse_configuration
from image.documents import decode
from image.errors import DigestMismatch, ImageError, ImageNotFound, InvalidImage, StorageFull
from image.manifest import OCI_INDEX, OCI_MANIFEST, Manifest, parse_manifest
from image.reference import digest_of

FORMATS = ("oci", "oci-archive", "docker-archive")
_PIECE = 1 << 20  # bytes
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


@dataclass(frozen=True, slots=True)
class KeptImage:
    """An image with its original blobs, lowest layer first, and the tars in them where those were kept."""

    id: str
    names: tuple[str, ...]  # its tags
    manifest: bytes
    configuration: bytes
    layers: tuple[Path, ...]
    tars: tuple[Path | None, ...]


class _Sink(Protocol):
    def add(self, name: str, size: int, file: BinaryIO) -> None: ...


class _Directory:
    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, name: str, size: int, file: BinaryIO) -> None:
        target = self._path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as copy:
            shutil.copyfileobj(file, copy, _PIECE)


class _Archive:
    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def add(self, name: str, size: int, file: BinaryIO) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        self._tar.addfile(info, file)


class _Hashed(io.RawIOBase):
    """A file that hashes what is read from it."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self.sha256.update(piece)
        return piece


def export(image: KeptImage, path: Path, form: str) -> str:
    """Write `image` to the new file or directory `path` in one of FORMATS. Returns its manifest's digest.

    Raises InvalidImage for an invalid path or format, ImageNotFound if a layer's blob was not kept, DigestMismatch for
    a damaged one, StorageFull. After an error nothing is left.
    """
    if form not in FORMATS:
        raise InvalidImage(f"export to {path}: format {form!r} must be one of {', '.join(FORMATS)}")
    manifest = parse_manifest(image.manifest, "", image.id)
    if not isinstance(manifest, Manifest):
        raise InvalidImage(f"export {image.id}: its manifest is an index")
    for blob, tar in zip(image.layers, image.tars, strict=True):
        if not blob.is_file() and (tar is None or form != "docker-archive"):
            raise ImageNotFound(
                f"export {image.id}: its layers' blobs were not kept: set keep_blobs = true, then remove the image and "
                "pull it again"
            )
    with _made(path, form) as sink:
        (_write_docker if form == "docker-archive" else _write_layout)(image, manifest, sink)
    return digest_of(image.manifest)


def _write_layout(image: KeptImage, manifest: Manifest, sink: _Sink) -> None:
    _add_bytes(sink, "oci-layout", _LAYOUT)
    media_type = decode(image.manifest, _Typed).media_type or OCI_MANIFEST
    described = {"mediaType": media_type, "digest": manifest.digest, "size": len(image.manifest)}
    entries = [{**described, "annotations": _annotations(name)} for name in image.names] or [described]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    _add_bytes(sink, "index.json", msgspec.json.encode(index))
    _add_bytes(sink, _blob(manifest.digest), image.manifest)
    _add_bytes(sink, _blob(image.id), image.configuration)
    written = {manifest.digest, image.id}
    for layer, path in zip(manifest.layers, image.layers, strict=True):
        if layer.digest not in written:
            written.add(layer.digest)
            _add_blob(sink, _blob(layer.digest), path, layer.digest)


def _write_docker(image: KeptImage, manifest: Manifest, sink: _Sink) -> None:
    """Write a docker archive. Layers stay as kept, compressed or not; docker, podman and skopeo accept both."""
    config = f"{image.id.removeprefix('sha256:')}.json"
    layers = list(_docker_layers(image, manifest))
    names = [f"{digest.removeprefix('sha256:')}.tar" for digest, _ in layers]
    document = [{"Config": config, "RepoTags": image.names, "Layers": names}]
    _add_bytes(sink, config, image.configuration)
    written = set()
    for name, (digest, path) in zip(names, layers, strict=True):
        if name not in written:
            written.add(name)
            _add_blob(sink, name, path, digest)
    _add_bytes(sink, "manifest.json", msgspec.json.encode(document))


def _docker_layers(image: KeptImage, manifest: Manifest) -> Iterator[tuple[str, Path]]:
    """Each layer's file, and the digest that it has."""
    diff_ids = parse_configuration(image.configuration, image.id).diff_ids
    for described, diff_id, blob, tar in zip(manifest.layers, diff_ids, image.layers, image.tars, strict=True):
        yield (described.digest, blob) if tar is None or blob.is_file() else (diff_id, tar)


class _Typed(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str = ""


def _annotations(name: str) -> dict[str, str]:
    """Return the annotations by which containerd, skopeo and umoci name an image."""
    return {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _add_bytes(sink: _Sink, name: str, content: bytes) -> None:
    sink.add(name, len(content), io.BytesIO(content))


def _add_blob(sink: _Sink, name: str, path: Path, digest: str) -> None:
    with path.open("rb") as file:
        hashed = _Hashed(file)
        sink.add(name, os.fstat(file.fileno()).st_size, hashed)  # type: ignore[arg-type]  # only `read` is asked for
        found = f"sha256:{hashed.sha256.hexdigest()}"
    if found != digest:
        raise DigestMismatch(f"export blob {digest}: the kept blob has digest {found}: run crisp image verify")


@contextmanager
def _made(path: Path, form: str) -> Iterator[_Sink]:
    """Make the output; it gets its name only when it is complete."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with ExitStack() as undo:
            if os.path.lexists(path):
                raise InvalidImage(f"export to {path}: it exists already")
            undo.callback(_remover(draft))
            if form == "oci":
                draft.mkdir()
                yield _Directory(draft)
            else:
                with tarfile.open(draft, "x", format=tarfile.PAX_FORMAT) as tar:
                    yield _Archive(tar)
            os.rename(draft, path)
            undo.pop_all()
    except OSError as error:
        kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else ImageError
        raise kind(f"export to {path}: {error.strerror or error}") from error


def _remover(draft: Path) -> Callable[[], None]:
    def remove() -> None:
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink(missing_ok=True)

    return remove
