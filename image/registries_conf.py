"""containers-registries.conf(5), version 2: where a reference is really fetched from.

Understood: `unqualified-search-registries`, and `[[registry]]` with `prefix`, `location`, `insecure`, `blocked`,
`mirror-by-digest-only` and its `[[registry.mirror]]` (`location`, `insecure`, `pull-from-mirror`), in the file itself
and in the drop-ins of `<file>.d/*.conf`, read in lexical order. Other keys are left alone.
"""

from __future__ import annotations

import ipaddress
import tomllib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from image.errors import InvalidConfiguration, RegistryBlocked
from image.reference import DEFAULT_DOMAIN, Reference

_PULL_FROM_MIRROR = ("all", "digest-only", "tag-only")


class _Mirror(msgspec.Struct, frozen=True, rename="kebab"):
    location: str
    insecure: bool = False
    pull_from_mirror: str = "all"


class _Registry(msgspec.Struct, frozen=True, rename="kebab"):
    prefix: str = ""
    location: str = ""
    insecure: bool = False
    blocked: bool = False
    mirror_by_digest_only: bool = False
    mirror: tuple[_Mirror, ...] = ()

    @property
    def key(self) -> str:
        return self.prefix or self.location


class _File(msgspec.Struct, frozen=True, rename="kebab"):
    unqualified_search_registries: tuple[str, ...] | None = None
    registry: tuple[_Registry, ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place to fetch a repository from."""

    host: str  # host[:port] to connect to
    repository: str  # path of the repository there
    insecure: bool  # certificates are not verified, and plain http will do
    mirror: bool

    @property
    def plain_http_allowed(self) -> bool:
        return self.insecure or is_loopback(self.host)

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}"


@dataclass(frozen=True, slots=True)
class RegistriesConf:
    """The configuration in force."""

    search: tuple[str, ...] = (DEFAULT_DOMAIN,)
    registries: tuple[_Registry, ...] = ()

    def endpoints(self, reference: Reference) -> tuple[Endpoint, ...]:
        """Where to fetch `reference` from, in order: its mirrors, then the registry itself. Raises RegistryBlocked."""
        entry, matched = self._entry(reference)
        if entry is None:
            return (_endpoint(reference.repository, insecure=False, mirror=False),)
        if entry.blocked:
            raise RegistryBlocked(f"pull {reference}: registries.conf blocks {entry.key}")
        rest = reference.repository[len(matched) :]
        mirrors = [m for m in entry.mirror if _serves(entry, m, reference)]
        found = [_endpoint(m.location + rest, insecure=m.insecure, mirror=True) for m in mirrors]
        found.append(_endpoint((entry.location or matched) + rest, insecure=entry.insecure, mirror=False))
        return tuple(found)

    def _entry(self, reference: Reference) -> tuple[_Registry | None, str]:
        """The entry of the longest prefix that matches, and the text it matched."""
        best: tuple[_Registry | None, str] = (None, "")
        longest = -1
        for entry in self.registries:
            matched = _match(entry.key, reference)
            if matched is not None and len(entry.key) > longest:
                best, longest = (entry, matched), len(entry.key)
        return best


def _serves(entry: _Registry, mirror: _Mirror, reference: Reference) -> bool:
    by_digest = bool(reference.digest)
    mode = "digest-only" if entry.mirror_by_digest_only else mirror.pull_from_mirror
    return mode == "all" or (mode == "digest-only") == by_digest


def _match(prefix: str, reference: Reference) -> str | None:
    """The part of the reference that `prefix` covers; None when it does not match. `*.` covers any subdomain."""
    if prefix.startswith("*."):
        return reference.domain if reference.domain.partition(":")[0].endswith(prefix[1:]) else None
    text = str(reference)
    if not text.startswith(prefix):
        return None
    return prefix if text[len(prefix) : len(prefix) + 1] in ("", "/", ":", "@") else None


def _endpoint(location: str, *, insecure: bool, mirror: bool) -> Endpoint:
    host, _, repository = location.partition("/")
    return Endpoint("registry-1.docker.io" if host == DEFAULT_DOMAIN else host, repository, insecure, mirror)


def is_loopback(host: str) -> bool:
    """Whether `host[:port]` is this machine by its very name (localhost, 127.0.0.0/8, [::1])."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def load(path: Path) -> RegistriesConf:
    """Read `path` and its drop-ins; what is missing counts as empty. Raises InvalidConfiguration naming the file."""
    search: tuple[str, ...] | None = None
    registries: dict[str, _Registry] = {}
    for file in (path, *sorted(path.with_name(path.name + ".d").glob("*.conf"))):
        parsed = _read(file)
        if parsed.unqualified_search_registries is not None:
            search = parsed.unqualified_search_registries
        registries.update((entry.key, entry) for entry in parsed.registry)
    return RegistriesConf((DEFAULT_DOMAIN,) if search is None else search, tuple(registries.values()))


def _read(file: Path) -> _File:
    try:
        document = tomllib.loads(file.read_text())
        if "registries" in document:
            raise InvalidConfiguration(f"read {file}: version 1 format ([registries.*]); write [[registry]] tables")
        parsed = msgspec.convert(document, _File)
        for entry in parsed.registry:
            _validate(entry)
    except FileNotFoundError:
        return _File()
    except (OSError, ValueError) as error:  # of ValueError: TOML, UTF-8 and msgspec's validation errors
        raise InvalidConfiguration(f"read {file}: {error}") from error
    return parsed


def _validate(entry: _Registry) -> None:
    wildcard = entry.prefix.startswith("*.")
    if not entry.location and not wildcard:
        raise ValueError(f"[[registry]] {entry.prefix or '(no prefix)'}: location is missing")
    for place in (entry.location, *(m.location for m in entry.mirror)):
        if "://" in place or place.endswith("/"):
            raise ValueError(f"[[registry]] {entry.key}: location {place!r} must be host[:port][/path]")
    for mirror in entry.mirror:
        if mirror.pull_from_mirror not in _PULL_FROM_MIRROR:
            raise ValueError(f"[[registry]] {entry.key}: pull-from-mirror {mirror.pull_from_mirror!r} is unknown")
