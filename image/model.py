"""The typed values of images: what the store has, and the inputs and progress of a pull."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from enum import Enum
from typing import Final

import msgspec

from image.errors import AuthenticationRequired

VOLUMES_LIMIT: Final = 1000  # each costs a directory and a mount per container


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The part of an image's configuration that the runtime uses (OCI image-spec, config.md)."""

    architecture: str = ""
    os: str = ""
    user: str = ""  # "uid[:gid]" or names, which are looked up inside the rootfs
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
    size: int  # bytes of its layers on disk (shared ones included), manifest and configuration
    config: ImageConfig
    created: int  # nanoseconds since the epoch; 0 if unknown
    pinned: bool = False  # kubelet's garbage collection must keep it


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """The login for an image's own registry. Mirrors never get it, and logs never show it."""

    username: str = ""
    password: str = ""
    identity_token: str = ""  # an OAuth2 refresh token, exchanged at the registry's token service
    registry_token: str = ""  # a bearer token, sent as it is
    server_address: str = ""  # the only host to use it for; "" for any

    def __repr__(self) -> str:
        return "Credentials(...)"

    @classmethod
    def from_auth(cls, auth: str, server_address: str = "") -> Credentials:
        """Decode `auth`: base64 of "username:password", also with line breaks as base64(1) writes it, or unpadded.

        Raises AuthenticationRequired if it is invalid.
        """
        text = "".join(auth.split()).rstrip("=")
        try:
            login = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
            username, colon, password = login.decode(errors="surrogateescape").partition(":")
        except ValueError:  # binascii.Error, or characters beyond ASCII
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
    """The progress of one layer in a pull. Bytes are those of the compressed blob."""

    layer: str  # digest of the blob
    offset: int
    total: int
    phase: PullPhase


class FilesystemUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The store's disk use on one file system."""

    mountpoint: str  # a path on that file system: the store's root
    bytes: int
    inodes: int


@dataclass(slots=True)
class PullCounts:
    """Statistics of the pulls since the store was opened."""

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    bytes: int = 0  # of layers, as transferred
    layers_fetched: int = 0
    layers_shared: int = 0  # already in the store
