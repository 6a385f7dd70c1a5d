"""Image references: distribution's grammar, and docker's short forms.

    reference := name [":" tag] ["@" digest]      name := [domain "/"] path

A name without a domain is in docker.io, where a path of one component is under `library/`; a reference without tag
and digest has the tag `latest`. Unlike docker, domains are converted to lower case (see `lower_host`).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace

from image.errors import InvalidReference

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = rf"{_COMPONENT}(?:/{_COMPONENT})*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"

_REFERENCE = re.compile(rf"(?P<name>[^@]+?)(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?", re.ASCII)
_DOMAIN_ONLY = re.compile(_DOMAIN, re.ASCII)
_PATH_ONLY = re.compile(_PATH, re.ASCII)
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_HEX64 = re.compile(r"[0-9a-f]{64}", re.ASCII)

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
NAME_LIMIT = 255  # characters of domain and path together
TEXT_LIMIT = NAME_LIMIT + len(":") + 128 + len("@sha256:") + 64  # characters of a whole reference


@dataclass(frozen=True, slots=True)
class Reference:
    """A fully qualified reference. A digest determines the image; a tag beside it is only kept."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def repository(self) -> str:
        """Domain and path, the beginning of `repo_tags` and `repo_digests`."""
        return f"{self.domain}/{self.path}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.repository}{tag}{digest}"

    @property
    def name(self) -> str:
        """The name in the store: with the digest if there is one, else with the tag."""
        return f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag}"

    def with_digest(self, digest: str) -> Reference:
        return replace(self, digest=digest)


def is_digest(text: str) -> bool:
    """Return whether `text` is a sha256 digest, the only algorithm in use."""
    return _SHA256.fullmatch(text) is not None


def digest_of(content: bytes) -> str:
    """Return the sha256 digest of a document or blob."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def lower_host(text: str) -> str:
    """Convert the registry in a reference, or in its beginning, to lower case.

    DNS does not distinguish A.io from a.io, so a rule for one must apply to the other.
    """
    host, slash, rest = text.partition("/")
    return host.lower() + slash + rest


def parse_reference(text: str) -> Reference:
    """Parse and qualify `text` as docker does. Raises InvalidReference."""
    domain, path, tag, digest = _split(text)
    if not domain:
        domain = DEFAULT_DOMAIN
    return _qualified(text, domain, path, tag, digest)


def short_name(text: str) -> Reference | None:
    """Return path, tag and digest of a name without a registry, unqualified; None if it names one.

    Raises InvalidReference.
    """
    domain, path, tag, digest = _split(text)
    return None if domain else Reference("", path, tag, digest)


def short_references(text: str, registries: tuple[str, ...]) -> tuple[Reference, ...]:
    """Return the references that `text` may mean: itself with a registry, else one for each of `registries`, in order.

    Raises InvalidReference; also for a short name if the list is empty.
    """
    domain, path, tag, digest = _split(text)
    if domain:
        return (_qualified(text, domain, path, tag, digest),)
    if not registries:
        raise InvalidReference(f"parse reference {text!r}: short name, and unqualified-search-registries is empty")
    return tuple(_qualified(text, registry, path, tag, digest) for registry in registries)


def _split(text: str) -> tuple[str, str, str, str]:
    """Return domain ("" for a short name), path, tag and digest, each of valid form."""
    if len(text) > TEXT_LIMIT:
        raise InvalidReference(f"parse reference {text[:32]!r}...: longer than {TEXT_LIMIT} characters")
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise InvalidReference(f"parse reference {text!r}: expected [registry/]path[:tag][@digest]")
    first, slash, rest = match["name"].partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first.lower() != first):
        domain, path = first, rest
        if not _DOMAIN_ONLY.fullmatch(domain):
            raise InvalidReference(f"parse reference {text!r}: {domain!r} is not a registry's host[:port]")
    else:
        domain, path = "", match["name"]
    if not _PATH_ONLY.fullmatch(path):
        lower = " (repository names are lower case)" if path.lower() != path else ""
        raise InvalidReference(f"parse reference {text!r}: {path!r} is not a repository path{lower}")
    digest = match["digest"] or ""
    if digest and not is_digest(digest):
        raise InvalidReference(f"parse reference {text!r}: {digest!r} is not a sha256 digest")
    if not domain and _HEX64.fullmatch(path):
        raise InvalidReference(f"parse reference {text!r}: 64 hexadecimal digits are an image id, not a name")
    return domain, path, match["tag"] or "", digest


def _qualified(text: str, domain: str, path: str, tag: str, digest: str) -> Reference:
    domain = domain.lower()
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = f"library/{path}"
    if len(domain) + 1 + len(path) > NAME_LIMIT:
        raise InvalidReference(f"parse reference {text!r}: name is longer than {NAME_LIMIT} characters")
    if not tag and not digest:
        tag = DEFAULT_TAG
    return Reference(domain, path, tag, digest)
