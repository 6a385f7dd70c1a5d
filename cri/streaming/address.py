"""Where the streaming server listens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StreamAddress:
    """`address` is "host:port". With `cert` and `key` TLS is spoken; with `ca`, clients need one that it signed."""

    address: str
    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    @property
    def host(self) -> str:
        """An IPv6 address is in brackets."""
        return self.address.rpartition(":")[0]

    @property
    def port(self) -> int:
        """0 for a free one."""
        return int(self.address.rpartition(":")[2])
