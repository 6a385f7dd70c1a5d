"""Signatures of images, and their verification.

A simple signature is an OpenPGP message that contains a claim; a sigstore signature is a claim with a raw signature
beside it (cosign's specification). The claim is the same JSON in both: a manifest's digest, and a name for it.
"""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from image.errors import ImageError, InvalidConfiguration
from image.programs import ask

SIMPLE, SIGSTORE = "simple", "sigstore"
SIGNATURE_LIMIT = 64 << 10  # bytes: one has some 1,000, and all of an image are kept in memory
COUNT_LIMIT = 32  # signatures of one manifest to check
KEPT_LIMIT = 4 * COUNT_LIMIT  # per image: two kinds, for its manifest and its index
_GPGV_SECONDS = 30.0
_BLOCK = re.compile(rb"-----BEGIN PGP PUBLIC KEY BLOCK-----(.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL)
_BAD = {"BADSIG", "ERRSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG", "NODATA", "BADARMOR", "FAILURE"}


class Signature(msgspec.Struct, frozen=True):
    """A signature as it was found. `signature` is empty for a simple one, which is complete in `payload`."""

    kind: str  # SIMPLE or SIGSTORE
    payload: bytes
    signature: bytes = b""


class Claim(msgspec.Struct, frozen=True):
    """The content of a valid signature."""

    digest: str  # of a manifest or index
    reference: str  # docker-reference


class _Image(msgspec.Struct, frozen=True, rename="kebab"):
    docker_manifest_digest: str


class _Identity(msgspec.Struct, frozen=True, rename="kebab"):
    docker_reference: str


class _Critical(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: str
    image: _Image
    identity: _Identity


class _Payload(msgspec.Struct, frozen=True):
    critical: _Critical


_TYPES = {SIMPLE: "atomic container signature", SIGSTORE: "cosign container image signature"}


async def verified_claim(signature: Signature, keys: Sequence[bytes]) -> Claim | None:
    """Return the claim if one of `keys` signed it; else None.

    Keys are PEM for sigstore, OpenPGP (armoured or not) for simple signatures. Raises InvalidConfiguration for an
    invalid key, ImageError if gpgv cannot be run.
    """
    if signature.kind == SIMPLE:
        content = await _gpg_content(signature.payload, keys)
    else:
        content = signature.payload if any(_made_by(key, signature) for key in keys) else None
    if content is None:
        return None
    try:
        critical = msgspec.json.decode(content, type=_Payload).critical
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if critical.type != _TYPES[signature.kind]:
        return None
    return Claim(critical.image.docker_manifest_digest, critical.identity.docker_reference)


def _made_by(pem: bytes, signature: Signature) -> bool:
    # It takes 60 ms to import: only for policies with such keys.
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidConfiguration(f"read public key of the signature policy: {error}") from None
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature.signature, signature.payload, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature.signature, signature.payload, padding.PKCS1v15(), hashes.SHA256())
        elif isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature.signature, signature.payload)
        else:
            kind = type(key).__name__
            raise InvalidConfiguration(f"read public key of the signature policy: {kind} is not supported")
    except InvalidSignature:
        return False
    return True


async def _gpg_content(message: bytes, keys: Sequence[bytes]) -> bytes | None:
    """Return the content of an OpenPGP message signed by one of `keys`, if that is neither expired nor revoked."""
    with tempfile.TemporaryDirectory(prefix="crisp-gpgv-") as name:
        directory = Path(name)
        (directory / "keys").write_bytes(b"".join(map(_dearmoured, keys)))
        (directory / "message").write_bytes(message)
        content = directory / "content"
        options = ("--homedir", name, "--keyring", directory / "keys", "--status-fd", "1", "--output", content)
        status, said = await _run("gpgv", *options, directory / "message")
        words = [line.split()[1] for line in said.splitlines() if line.startswith("[GNUPG:] ")]
        if status or words.count("VALIDSIG") != 1 or words.count("GOODSIG") != 1 or not _BAD.isdisjoint(words):
            return None
        return content.read_bytes()


def _dearmoured(key: bytes) -> bytes:
    """Convert a key to the binary form that gpgv needs."""
    if b"-----BEGIN" not in key:
        return key
    found = b""
    for block in _BLOCK.findall(key):
        _, _, body = block.replace(b"\r", b"").partition(b"\n\n")
        lines = [line for line in body.split(b"\n") if not line.startswith(b"=")]  # the last is a checksum
        try:
            found += base64.b64decode(b"".join(lines), validate=True)
        except binascii.Error as error:
            raise InvalidConfiguration(f"read GPG key of the signature policy: {error}") from None
    if not found:
        raise InvalidConfiguration("read GPG key of the signature policy: it contains no public key")
    return found


async def _run(*command: str | Path) -> tuple[int, str]:
    try:
        status, said = await ask(*command, seconds=_GPGV_SECONDS)
    except TimeoutError:
        raise ImageError(f"run {command[0]}: it did not finish within {_GPGV_SECONDS:g} s") from None
    except OSError as error:
        raise ImageError(f"run {command[0]}: {error.strerror}: install the package gpgv") from error
    return status, said.decode(errors="replace")
