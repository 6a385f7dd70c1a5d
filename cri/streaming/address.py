"""Where the streaming server listens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StreamAddress:
    """With `cert` and `key` TLS is spoken; with `ca`, clients must have a certificate that it signed."""

    host: str
    port: int
    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None
