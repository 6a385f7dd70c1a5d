"""Parses image configurations and compares them with the machine (OCI image-spec, config.md). No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from image.documents import Malformed, decode
from image.errors import InvalidImage, OtherPlatform
from image.model import VOLUMES_LIMIT, ImageConfig
from image.platforms import Platform
from image.reference import digest_of, is_digest

CONFIG_LIMIT = 8 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Configuration:
    """An image's configuration, with the bytes that its digest covers."""

    raw: bytes
    config: ImageConfig
    diff_ids: tuple[str, ...]
    created: int  # nanoseconds since the epoch, 0 when absent
    variant: str = ""

    @property
    def digest(self) -> str:
        return digest_of(self.raw)

    @property
    def platform(self) -> Platform:
        """The platform that the configuration names."""
        return Platform(self.config.os, self.config.architecture, self.variant)

    @property
    def chain_ids(self) -> tuple[str, ...]:
        """Each layer's chain id, which covers all layers below as well (OCI image-spec, config.md, "Layer ChainID")."""
        chain: list[str] = []
        for diff_id in self.diff_ids:
            chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
        return tuple(chain)


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
        document = decode(raw, _ImageDocument)
    except Malformed as error:
        raise InvalidImage(f"parse configuration of {what}: {error}") from None
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
    return Configuration(raw, config, diff_ids, _nanoseconds(document.created or ""), document.variant)


def doubt(configuration: Configuration, platforms: Sequence[Platform], what: str) -> str:
    """Return a warning if the configuration names another platform than this machine's; "" otherwise.

    Many configurations name a wrong platform, so this refuses nothing that was chosen otherwise. Raises OtherPlatform
    for Windows, whose layers are no Linux file systems, and InvalidImage for more volumes than a container may have.
    """
    if (volumes := len(configuration.config.volumes)) > VOLUMES_LIMIT:
        raise InvalidImage(f"pull {what}: it has {volumes} volumes, more than {VOLUMES_LIMIT}")
    platform = configuration.platform
    if platform.suits(platforms):
        return ""
    claim = f"its configuration is for {platform}, this node runs {platforms[0]}"
    if platform.normalised.os == "windows":
        raise OtherPlatform(f"pull {what}: {claim}")
    return claim


def _nanoseconds(text: str) -> int:
    """Convert RFC 3339 to nanoseconds since the epoch; 0 for an invalid time (in use: "", year 0001)."""
    match = re.fullmatch(r"(.{19})(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:\d\d)", text)
    if match is None:
        return 0
    try:
        whole = datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00")).astimezone(UTC)
    except (ValueError, OverflowError):
        return 0
    seconds = int(whole.timestamp())
    return max(0, seconds * 1_000_000_000 + int((match[2] or "").ljust(9, "0")))
