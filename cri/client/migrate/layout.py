"""Writes OCI image layouts of links to (or copies of) another store's blobs, for crisp's import."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_INDEX_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


class NotWhole(Exception):
    """An image cannot be taken over; the message says why."""


@dataclass(frozen=True, slots=True)
class Found:
    """An image of another store. `write` fills a new directory with its layout; it raises NotWhole, OSError."""

    name: str
    digest: str
    write: Callable[[Path], None]


def write_index(directory: Path, name: str, descriptor: dict[str, Any]) -> None:
    """Write the layout's own files; the blobs are there."""
    named = {**descriptor, "annotations": {"org.opencontainers.image.ref.name": name}}
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))


def blob(directory: Path, digest: str) -> Path:
    """Return a blob's path in a layout or in containerd's content store."""
    kind, _, value = digest.partition(":")
    if not kind.isalnum() or not value.isalnum():
        raise NotWhole(f"{digest!r} is no digest")
    return directory / "blobs" / kind / value


def link(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy on another file system. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        shutil.copyfile(source, target)


def reachable(store: Path, digest: str, media_type: str) -> Iterator[tuple[str, bool]]:
    """Yield the digests below a manifest or index, with whether an import needs each: a node has one platform only.

    Raises NotWhole.
    """
    yield digest, True
    try:
        document = json.loads(blob(store, digest).read_bytes())
    except (OSError, ValueError) as error:
        raise NotWhole(f"read {digest}: {error}") from error
    if media_type in _INDEX_TYPES or "manifests" in document:
        for one in document.get("manifests", ()):
            if blob(store, one["digest"]).exists():
                below = reachable(store, one["digest"], one.get("mediaType", ""))
                yield from ((found, False) for found, _needed in below)
        return
    for one in (document.get("config") or {}, *document.get("layers", ())):
        if "digest" in one:
            yield one["digest"], True
