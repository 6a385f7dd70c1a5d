"""Enforces the signature policy: images are pulled and containers created only if it accepts them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec
from yarl import URL

from image.documents import Malformed, decode
from image.errors import ImageNotFound, InvalidConfiguration, InvalidImage, RegistryUnavailable, SignatureRefused
from image.manifest import Descriptor, checked
from image.reference import Reference
from image.registry.origin import Origin
from image.registry.transport import Transport
from image.settings import ImageSettings
from image.trust.policy import (
    DEFAULT_POLICY,
    Accept,
    Policy,
    Reject,
    Requirements,
    SignedBy,
    SigstoreSigned,
    keys,
    load_policy,
    names_it,
)
from image.trust.registries_d import lookaside
from image.trust.signatures import COUNT_LIMIT, SIGNATURE_LIMIT, SIGSTORE, SIMPLE, Signature, verified_claim

_SIGSTORE_PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
_SIGSTORE_SIGNATURE = "dev.cosignproject.cosign/signature"
_CACHED = 4096  # verdicts kept

_Stamp = tuple[object, ...]


class _SignatureManifest(msgspec.Struct, frozen=True):
    layers: tuple[Descriptor, ...] = ()


class Trust:
    """The policy of one store. Acceptance is cached until the policy, a key or the signatures change."""

    def __init__(self, settings: ImageSettings, transport: Transport) -> None:
        self._path = settings.signature_policy
        self._registries_d = settings.registries_d
        self._transport = transport
        self._loaded: tuple[_Stamp, Policy] = ((), Policy())
        self._accepted: dict[tuple[object, ...], None] = {}

    def policy(self) -> Policy:
        """Return the policy in force; without a default policy, now and before, everything is accepted.

        Raises InvalidConfiguration; also if a policy has disappeared, or removing it would be a way around it.
        """
        path = self._path or DEFAULT_POLICY
        stamp = _stamp(path)
        if stamp is None and self._path is None and not self._loaded[0]:
            return Policy()
        if stamp is None or stamp != self._loaded[0]:
            self._loaded = (stamp or (), load_policy(path))
        return self._loaded[1]

    async def signatures(
        self, origin: Origin, reference: Reference, digests: Sequence[str], requirements: Requirements
    ) -> tuple[Signature, ...]:
        """Fetch the signatures that `requirements` need, for manifests and indexes with `digests`. Verifies none.

        Raises RegistryUnavailable, AuthenticationRequired, InvalidConfiguration.
        """
        found: list[Signature] = []
        if any(isinstance(requirement, SigstoreSigned) for requirement in requirements):
            for digest in digests:
                found += await _attached(origin, reference, digest)
        if any(isinstance(requirement, SignedBy) for requirement in requirements):
            place = await asyncio.to_thread(lookaside, self._registries_d, reference)
            for digest in digests if place else ():
                found += [Signature(SIMPLE, message) async for message in self._beside(place, reference, digest)]
        return tuple(found)

    async def require(
        self,
        reference: Reference,
        digests: Sequence[str],
        signatures: Sequence[Signature],
        requirements: Requirements,
    ) -> None:
        """Raise SignatureRefused unless the image with these `digests` meets every requirement."""
        for requirement in requirements:
            if isinstance(requirement, Accept):
                continue
            if isinstance(requirement, Reject):
                raise SignatureRefused(f"accept {reference}: the signature policy rejects it")
            key = (requirement, reference, tuple(digests), tuple(signatures), _key_stamps(requirement))
            if key not in self._accepted:
                await self._require(reference, digests, signatures, requirement)
                while len(self._accepted) >= _CACHED:
                    del self._accepted[next(iter(self._accepted))]
                self._accepted[key] = None

    async def _require(
        self,
        reference: Reference,
        digests: Sequence[str],
        signatures: Sequence[Signature],
        requirement: SignedBy | SigstoreSigned,
    ) -> None:
        simple = isinstance(requirement, SignedBy)
        of_kind = [signature for signature in signatures if signature.kind == (SIMPLE if simple else SIGSTORE)]
        known = await asyncio.to_thread(keys, requirement)
        reasons: list[str] = []
        for signature in of_kind:
            claim = await verified_claim(signature, known)
            if claim is None:
                reasons.append("one is not made by a key of the policy")
            elif claim.digest not in digests:
                reasons.append(f"one covers {claim.digest}")
            elif not names_it(requirement.signed_identity, reference, claim.reference):
                reasons.append(f"one is for {claim.reference!r}")
            else:
                return
        kind = "simple" if simple else "sigstore"
        why = "; ".join(dict.fromkeys(reasons)) or "there is none"
        raise SignatureRefused(f"accept {reference}: the policy requires a {kind} signature: {why}")

    async def _beside(self, place: str, reference: Reference, digest: str) -> AsyncIterator[bytes]:
        """Yield the simple signatures in a lookaside store: <place>/<path>@sha256=<hex>/signature-<n>, from 1 on."""
        base = f"{place.rstrip('/')}/{reference.path}@{digest.replace(':', '=')}"
        for number in range(1, COUNT_LIMIT + 1):
            url = f"{base}/signature-{number}"
            if urlsplit(url).scheme == "file":
                message = await asyncio.to_thread(_read_file, Path(unquote(urlsplit(url).path)))
            else:
                message = await self._transport.small(URL(url), SIGNATURE_LIMIT)
            if message is None:
                return
            yield message


async def _attached(origin: Origin, reference: Reference, digest: str) -> list[Signature]:
    """Fetch the sigstore signatures beside a manifest, from the tag sha256-<hex>.sig."""
    tag = f"{digest.replace(':', '-')}.sig"

    def read(raw: bytes, _: str) -> _SignatureManifest:
        try:
            return decode(raw, _SignatureManifest)
        except Malformed as error:
            raise InvalidImage(f"read signatures {tag} of {reference}: {error}") from None

    try:
        manifest = await origin.manifest(tag, read, aside=True)
    except ImageNotFound:
        return []
    found = []
    for layer in manifest.layers[:COUNT_LIMIT]:
        if layer.media_type != _SIGSTORE_PAYLOAD:
            continue
        signature = _base64((layer.annotations or {}).get(_SIGSTORE_SIGNATURE, ""))
        payload = await origin.document(checked(layer, f"{tag} of {reference.repository}"), SIGNATURE_LIMIT)
        found.append(Signature(SIGSTORE, payload, signature))
    return found


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return b""


def _read_file(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(SIGNATURE_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RegistryUnavailable(f"read signature {path}: {error.strerror}") from error


def _stamp(path: Path) -> _Stamp | None:
    try:
        there = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InvalidConfiguration(f"read signature policy {path}: {error.strerror}") from error
    return there.st_ino, there.st_size, there.st_mtime_ns


def _key_stamps(requirement: SignedBy | SigstoreSigned) -> _Stamp:
    paths = filter(None, (requirement.key_path, *requirement.key_paths))
    return tuple(_stamp(Path(path)) for path in paths)


def transport_of(path: Path, docker: bool) -> str:
    """Return the name of an archive's kind in policies."""
    return "docker-archive" if docker else "oci" if os.path.isdir(path) else "oci-archive"
