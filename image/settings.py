"""The image room's settings from the daemon's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LAYER_KINDS = ("auto", "erofs", "unpacked")


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """Paths that do not exist count as empty, unless the operator set them."""

    auth_file: Path | None = None  # None: root's files of podman, skopeo and docker
    certs_dirs: tuple[Path, ...] = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))
    signature_policy: Path | None = None  # None: the default policy if it exists, else accept everything
    registries_d: Path = Path("/etc/containers/registries.d")
    progress_timeout: float = 300.0  # seconds without a byte after which a pull fails; 0 for none
    least_speed: int = 1024  # bytes a second, in each progress timeout; with less a pull fails
    parallel_downloads: int = 0  # layers of one pull to fetch at a time; 0: as the processors and the memory suggest
    layer_limit: int = 64 << 30  # bytes that a layer may unpack to; 0 for no limit
    keep_blobs: bool = False  # keep layers also as transferred, for exports
    image_layers: str = "auto"  # one of LAYER_KINDS: how new layers are stored
    additional_stores: tuple[Path, ...] = ()  # never written; the node's own store and earlier ones win
