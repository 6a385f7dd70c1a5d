"""The typed values of images: what the store knows, and what a pull needs and tells."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from enum import Enum
from typing import Final

import msgspec

from image.errors import AuthenticationRequired

VOLUMES_LIMIT: Final = 1000  # each costs a directory and a mount whenever a container starts


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The part of an image's configuration that a runtime acts on (OCI image-spec, config.md)."""

    architecture: str = ""
    os: str = ""
    user: str = ""  # "uid[:gid]" or names, to be looked up inside the rootfs
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()  # "80/tcp"
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    stop_signal: str = ""


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image of the store."""

    id: str  # "sha256:<hex>", the digest of its configuration
    repo_tags: tuple[str, ...]  # "docker.io/library/busybox:latest"
    repo_digests: tuple[str, ...]  # "docker.io/library/busybox@sha256:<hex>", the digest the registry served it by
    size: int  # bytes its unpacked layers, manifest and configuration take, shared layers included
    config: ImageConfig
    created: int  # nanoseconds since the epoch; 0 when the image does not say
    pinned: bool = False  # never to be garbage-collected


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """What to authenticate to the image's own registry with; mirrors never see it. Never shown in logs."""

    username: str = ""
    password: str = ""
    identity_token: str = ""  # an OAuth2 refresh token, exchanged at the registry's token service
    registry_token: str = ""  # a bearer token, sent as it is
    server_address: str = ""  # "" or the only host these are for

    def __repr__(self) -> str:
        return "Credentials(...)"

    @classmethod
    def from_auth(cls, auth: str, server_address: str = "") -> Credentials:
        """Decode the `auth` form: base64 of "username:password", also in lines as base64(1) writes it, or unpadded.

        Raises AuthenticationRequired if it is not that.
        """
        text = "".join(auth.split()).rstrip("=")
        try:
            login = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
            username, colon, password = login.decode(errors="surrogateescape").partition(":")
        except ValueError:  # binascii.Error is one; so is what is said of letters beyond ASCII
            colon = ""
        if not colon:
            raise AuthenticationRequired("read credentials: `auth` is not base64 of username:password")
        return cls(username=username, password=password.rstrip("\0"), server_address=server_address)


class PullPhase(Enum):
    WAITING = "waiting"
    PULLING = "pulling"
    COMPLETE = "complete"
    EXISTS = "exists"


class PullProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far one layer of a pull is. Bytes are those of the compressed blob."""

    layer: str  # digest of the blob
    offset: int
    total: int
    phase: PullPhase


class FilesystemUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What the store takes on one filesystem."""

    mountpoint: str  # a path on that filesystem: the store's root
    bytes: int
    inodes: int


@dataclass(slots=True)
class PullCounts:
    """What the pulls since the store was opened came to."""

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    bytes: int = 0  # of layers, as they came
    layers_fetched: int = 0
    layers_shared: int = 0  # that were there already
