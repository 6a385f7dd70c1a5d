"""The address and certificates of the streaming server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StreamAddress:
    """`address` is "host:port". `cert` and `key` turn TLS on; with `ca` clients need a certificate signed by it."""

    address: str
    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    @property
    def host(self) -> str:
        """The host; an IPv6 address is in brackets."""
        return self.address.rpartition(":")[0]

    @property
    def port(self) -> int:
        """The port; 0 means any free one."""
        return int(self.address.rpartition(":")[2])
