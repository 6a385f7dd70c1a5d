"""What the daemon's configuration tells the image room."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LAYER_KINDS = ("auto", "erofs", "unpacked")


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """Paths that do not exist count as empty, unless an operator named them."""

    auth_file: Path | None = None  # None: where podman's, skopeo's and docker's logins of root are
    certs_dirs: tuple[Path, ...] = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))
    signature_policy: Path | None = None  # None: the default policy if there is one, else everything is accepted
    registries_d: Path = Path("/etc/containers/registries.d")
    progress_timeout: float = 300.0  # seconds without a byte after which a pull fails; 0 for none
    parallel_downloads: int = 4  # layers of one pull at a time
    layer_limit: int = 64 << 30  # bytes that a layer may unpack to; 0 for no limit
    keep_blobs: bool = False  # layers also as they came, for exports
    image_layers: str = "unpacked"  # one of LAYER_KINDS: what new layers become
    additional_stores: tuple[Path, ...] = ()  # only read; ours, and those before, come first
