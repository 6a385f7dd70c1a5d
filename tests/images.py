"""Images made by the tests themselves: tars with anything in them, OCI layouts, and one of Debian's busybox."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
BUSYBOX = Path("/bin/busybox")  # of Debian's busybox-static


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def entry(name: str, content: bytes | None = None, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A tar member, a directory if `name` ends in "/". `fields` are TarInfo's, and `xattrs`, a mapping."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
    info.mode = 0o755 if name.endswith("/") else 0o644
    info.mtime = 1_700_000_000
    xattrs: Mapping[str, str] = fields.pop("xattrs", {})
    info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in xattrs.items()}
    for key, value in fields.items():
        setattr(info, key, value)
    info.size = len(content or b"")
    return info, content or b""


def executable(name: str, content: bytes, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, content, mode=mode)


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.SYMTYPE, linkname=target)


def texts(files: Mapping[str, str]) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Tar members with these contents."""
    return [entry(name, text.encode()) for name, text in files.items()]


def layer(*entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """An uncompressed tar. Names are written as they are, however evil."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@lru_cache(maxsize=4)  # images share layers
def compress(content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)


@dataclass
class BuiltImage:
    """A manifest and every blob it names, by digest."""

    manifest: bytes
    media_type: str
    blobs: dict[str, bytes]
    id: str  # of the configuration; "" for an index
    children: list[BuiltImage] = field(default_factory=list)  # of an index

    @property
    def digest(self) -> str:
        return digest(self.manifest)

    def descriptor(self, **more: Any) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.manifest), **more}


def build_image(
    layers: Sequence[bytes],
    config: Mapping[str, Any] | None = None,
    *,
    compressed: bool = True,
    architecture: str = ARCHITECTURE,
    media_type: str = OCI_MANIFEST,
    layer_type: str = "",
    config_type: str = OCI_CONFIG,
    diff_ids: Sequence[str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> BuiltImage:
    """An image of uncompressed tars. `config` is the runtime part (Cmd, Env, ...)."""
    stored = [compress(tar) if compressed else tar for tar in layers]
    document = {
        "architecture": architecture,
        "os": "linux",
        "created": "2024-02-03T04:05:06.789Z",
        "config": dict(config or {"Cmd": ["sh"]}),
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids or map(digest, layers))},
    }
    raw = json.dumps(document).encode()
    layer_type = layer_type or (OCI_LAYER + "+gzip" if compressed else OCI_LAYER)
    manifest = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": {"mediaType": config_type, "digest": digest(raw), "size": len(raw)},
        "layers": [{"mediaType": layer_type, "digest": digest(blob), "size": len(blob)} for blob in stored],
    }
    if annotations:
        manifest["annotations"] = dict(annotations)
    blobs = {digest(blob): blob for blob in (raw, *stored)}
    return BuiltImage(json.dumps(manifest).encode(), media_type, blobs, digest(raw))


def build_index(images: Iterable[tuple[BuiltImage, Mapping[str, str]]], media_type: str = OCI_INDEX) -> BuiltImage:
    """An index of images with their platforms."""
    pairs = list(images)
    document = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "manifests": [image.descriptor(platform=dict(platform)) for image, platform in pairs],
    }
    return BuiltImage(json.dumps(document).encode(), media_type, {}, "", [image for image, _ in pairs])


def write_layout(directory: Path, images: Mapping[str, BuiltImage]) -> Path:
    """An OCI image layout with `images` by name ("" for none). Returns `directory`."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    manifests = []
    for name, image in images.items():
        for part in (image, *image.children):
            for key, content in {**part.blobs, part.digest: part.manifest}.items():
                (blobs / key.removeprefix("sha256:")).write_bytes(content)
        annotations = {"annotations": {"org.opencontainers.image.ref.name": name}} if name else {}
        manifests.append(image.descriptor(**annotations))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
    return directory


def tar_of(directory: Path, archive: Path) -> Path:
    """The files below `directory` as a tar."""
    with tarfile.open(archive, "w") as tar:
        for path in sorted(directory.rglob("*")):
            tar.add(path, path.relative_to(directory).as_posix(), recursive=False)
    return archive


_PASSWD = b"""root:x:0:0:root:/root:/bin/sh
app:x:1000:1000::/home:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
"""
_GROUP = b"""root:x:0:
app:x:1000:
extra:x:2000:app
nogroup:x:65534:
"""


@cache
def busybox_layer() -> bytes:
    """A root filesystem of Debian's static busybox: every applet, users root, nobody and app (1000), /tmp, /etc."""
    applets = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
    names = ("bin", "dev", "etc", "home", "proc", "root", "sys", "usr", "var", "www")
    directories = [entry(f"{name}/") for name in names]
    files = [
        entry("bin/busybox", BUSYBOX.read_bytes(), mode=0o755),
        entry("etc/passwd", _PASSWD),
        entry("etc/group", _GROUP),
        entry("tmp/", mode=0o1777),
        entry("usr/bin", type=tarfile.SYMTYPE, linkname="../bin"),
        entry("www/index.html", b"hello from a pod\n"),
    ]
    links = [
        entry(f"bin/{name}", type=tarfile.LNKTYPE, linkname="bin/busybox", mode=0o755)
        for name in applets
        if name != "busybox"
    ]
    return layer(*directories, *files, *links)


@cache
def busybox_image() -> BuiltImage:
    return build_image(
        [busybox_layer()],
        {"Cmd": ["sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
    )


def busybox_layout(dir: Path, name: str = "docker.io/library/busybox:latest") -> Path:
    """An OCI layout in `dir` with an image of busybox, named `name`."""
    return write_layout(dir, {name: busybox_image()})
