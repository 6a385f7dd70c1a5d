"""Reads containers-policy.json(5): which images are accepted, and with whose signatures.

Supported requirements: insecureAcceptAnything, reject, signedBy with GPG keys, sigstoreSigned with public keys.
Anything else (Fulcio certificates, Rekor) makes the file invalid, since ignoring it would weaken the policy.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from image.errors import InvalidConfiguration, InvalidReference
from image.reference import Reference, lower_host, parse_reference

DEFAULT_POLICY = Path("/etc/containers/policy.json")


class _Strict(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    pass


class Accept(_Strict, frozen=True, tag="insecureAcceptAnything"):
    """Accept any image."""


class Reject(_Strict, frozen=True, tag="reject"):
    """Accept no image."""


class MatchExact(_Strict, frozen=True, tag="matchExact"):
    """The signature must name the requested tag."""


class MatchRepoDigestOrExact(_Strict, frozen=True, tag="matchRepoDigestOrExact"):
    """Like matchExact; for a request by digest only the repository must match."""


class MatchRepository(_Strict, frozen=True, tag="matchRepository"):
    """The signature must name the requested repository."""


class ExactReference(_Strict, frozen=True, tag="exactReference"):
    """The signature must name this reference, whatever was requested."""

    docker_reference: str


class ExactRepository(_Strict, frozen=True, tag="exactRepository"):
    """The signature must name this repository, whatever was requested."""

    docker_repository: str


class RemapIdentity(_Strict, frozen=True, tag="remapIdentity"):
    """Like matchRepoDigestOrExact, with `prefix` of the requested name replaced."""

    prefix: str
    signed_prefix: str


Identity = MatchExact | MatchRepoDigestOrExact | MatchRepository | ExactReference | ExactRepository | RemapIdentity


class SignedBy(_Strict, frozen=True, tag="signedBy"):
    """Require a simple signature by one of the GPG keys."""

    key_type: Literal["GPGKeys"]
    key_path: str = ""
    key_paths: tuple[str, ...] = ()
    key_data: str = ""
    signed_identity: Identity = msgspec.field(default_factory=MatchRepoDigestOrExact)


class SigstoreSigned(_Strict, frozen=True, tag="sigstoreSigned"):
    """Require a sigstore signature (cosign's) by one of the public keys."""

    key_path: str = ""
    key_paths: tuple[str, ...] = ()
    key_data: str = ""
    key_datas: tuple[str, ...] = ()
    signed_identity: Identity = msgspec.field(default_factory=MatchRepoDigestOrExact)


Requirement = Accept | Reject | SignedBy | SigstoreSigned
Requirements = tuple[Requirement, ...]
_ANY: Requirements = (Accept(),)


class _File(_Strict, frozen=True):
    default: Requirements
    transports: dict[str, dict[str, Requirements]] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy. All requirements that a lookup returns must be met."""

    default: Requirements = _ANY
    transports: dict[str, dict[str, Requirements]] = field(default_factory=dict)

    @property
    def accepts_all(self) -> bool:
        """Whether no image from a registry needs to meet anything, whatever its name."""
        return self.default == _ANY and not self.transports.get("docker")

    def for_reference(self, reference: Reference) -> Requirements:
        """Return the requirements for an image from a registry: those of the narrowest scope in the file."""
        return self._first("docker", (*_scopes(reference), *_wildcards(reference.domain), ""))

    def for_archive(self, transport: str, path: Path) -> Requirements:
        """Return the requirements for an archive; `transport` is "oci", "oci-archive" or "docker-archive"."""
        return self._first(transport, (str(path), *map(str, path.parents), ""))

    def _first(self, transport: str, scopes: Sequence[str]) -> Requirements:
        known = self.transports.get(transport, {})
        return next((known[scope] for scope in scopes if scope in known), self.default)


def load_policy(path: Path) -> Policy:
    """Read a policy. Raises InvalidConfiguration naming the file; also if it does not exist."""
    try:
        parsed = msgspec.json.decode(path.read_bytes(), type=_File)
    except OSError as error:
        raise InvalidConfiguration(f"read signature policy {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidConfiguration(f"read signature policy {path}: {error}") from None
    lists = [parsed.default, *(found for scopes in parsed.transports.values() for found in scopes.values())]
    for requirements in lists:
        if not requirements:
            raise InvalidConfiguration(f"read signature policy {path}: an empty list of requirements accepts nothing")
        for requirement in requirements:
            if isinstance(requirement, SignedBy | SigstoreSigned) and _sources(requirement) != 1:
                reason = "a requirement must have exactly one of keyPath, keyPaths and keyData"
                raise InvalidConfiguration(f"read signature policy {path}: {reason}")
    of_registries: dict[str, Requirements] = {}
    for scope, requirements in parsed.transports.get("docker", {}).items():
        of_registries[lower_host(scope)] = of_registries.get(lower_host(scope), ()) + requirements
    return Policy(parsed.default, {**parsed.transports, "docker": of_registries})


def _sources(requirement: SignedBy | SigstoreSigned) -> int:
    given = [requirement.key_path, requirement.key_paths, requirement.key_data]
    if isinstance(requirement, SigstoreSigned):
        given.append(requirement.key_datas)
    return sum(map(bool, given))


def keys(requirement: SignedBy | SigstoreSigned) -> list[bytes]:
    """Return the keys of a requirement in their stored form. Raises InvalidConfiguration naming an unreadable file."""
    texts = [requirement.key_data] if requirement.key_data else []
    if isinstance(requirement, SigstoreSigned):
        texts += requirement.key_datas
    try:
        found = [base64.b64decode(text, validate=True) for text in texts]
    except binascii.Error as error:
        raise InvalidConfiguration(f"read signature policy: keyData: {error}") from None
    for path in filter(None, (requirement.key_path, *requirement.key_paths)):
        try:
            found.append(Path(path).read_bytes())
        except OSError as error:
            raise InvalidConfiguration(f"read key {path}: {error.strerror}") from error
    return found


def _scopes(reference: Reference) -> Iterator[str]:
    """Yield `a.io/b/c:tag`, `a.io/b/c`, `a.io/b`, `a.io`."""
    yield reference.name
    scope = reference.repository
    while scope:
        yield scope
        scope = scope.rpartition("/")[0]


def _wildcards(domain: str) -> Iterator[str]:
    """Yield `*.b.c` and `*.c` for `a.b.c`."""
    _, dot, rest = domain.partition(".")
    while dot:
        yield f"*.{rest}"
        _, dot, rest = rest.partition(".")


def names_it(identity: Identity, asked: Reference, signed: str) -> bool:
    """Return whether a signature for `signed` (its docker-reference) is valid for the requested reference."""
    try:
        found = parse_reference(signed)
    except InvalidReference:
        return False
    match identity:
        case MatchExact():
            return not asked.digest and _exact(asked, found, signed)
        case MatchRepository():
            return found.repository == asked.repository
        case ExactReference():
            return found == parse_reference(identity.docker_reference) and _says_tag_or_digest(signed)
        case ExactRepository():
            return found.repository == parse_reference(identity.docker_repository).repository
        case RemapIdentity():
            asked = _remapped(asked, identity)
    return found.repository == asked.repository if asked.digest else _exact(asked, found, signed)


def _exact(asked: Reference, found: Reference, signed: str) -> bool:
    return found == asked and _says_tag_or_digest(signed)


def _says_tag_or_digest(text: str) -> bool:
    return bool({":", "@"} & set(text.rpartition("/")[2]))


def _remapped(asked: Reference, identity: RemapIdentity) -> Reference:
    text = str(asked)
    rest = text.removeprefix(lower_host(identity.prefix))
    if rest == text or rest[:1] not in ("", "/", ":", "@"):
        return asked
    return parse_reference(identity.signed_prefix + rest)
