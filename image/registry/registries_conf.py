"""Reads containers-registries.conf(5), version 2: the places that references are fetched from.

Supported keys: `unqualified-search-registries`, `short-name-mode`, `credential-helpers`, `[aliases]`, and
`[[registry]]` with `prefix`, `location`, `insecure`, `blocked`, `mirror-by-digest-only` and its `[[registry.mirror]]`
(`location`, `insecure`, `pull-from-mirror`); in the file and in its drop-ins `<file>.d/*.conf`, in lexical order.
Other keys are ignored.
"""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
from yarl import URL

from image.errors import InvalidConfiguration, InvalidReference, RegistryBlocked
from image.reference import (
    DEFAULT_DOMAIN,
    Reference,
    lower_host,
    parse_reference,
    short_name,
    short_references,
)

_PULL_FROM_MIRROR = ("all", "digest-only", "tag-only")
_SHORT_NAME_MODES = ("enforcing", "permissive", "disabled")
_DOCKER_HUB = "registry-1.docker.io"  # the host of docker.io's registry


class _Mirror(msgspec.Struct, frozen=True, rename="kebab"):
    location: str
    insecure: bool = False
    pull_from_mirror: str = ""


class _Registry(msgspec.Struct, frozen=True, rename="kebab"):
    prefix: str = ""
    location: str = ""
    insecure: bool = False
    blocked: bool = False
    mirror_by_digest_only: bool = False
    mirror: tuple[_Mirror, ...] = ()

    @property
    def key(self) -> str:
        return lower_host(self.prefix or self.location)


class _File(msgspec.Struct, frozen=True, rename="kebab"):
    unqualified_search_registries: tuple[str, ...] | None = None
    short_name_mode: str | None = None
    credential_helpers: tuple[str, ...] | None = None
    aliases: dict[str, str] = msgspec.field(default_factory=dict)
    registry: tuple[_Registry, ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A place to fetch a repository from."""

    host: str  # host[:port] to connect to
    repository: str  # path of the repository there
    insecure: bool  # certificates are not verified, and plain http is allowed
    mirror: bool
    insecure_hosts: frozenset[str] = frozenset()  # other hosts that the configuration marks insecure

    @property
    def plain_http_allowed(self) -> bool:
        return self.insecure or is_loopback(self.host)

    def insecure_at(self, url: URL) -> bool:
        """Return whether to skip verifying the certificate of `url`'s host.

        `insecure` applies to one host, not to hosts that it redirects to, and not to its token service.
        """
        if url.origin() == _origin(url.scheme, self.host):
            return self.insecure
        return any(url.origin() == _origin(url.scheme, host) for host in self.insecure_hosts)

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}"

    @property
    def location(self) -> str:
        """Registry and repository as people write them, the key for stored credentials."""
        return f"{DEFAULT_DOMAIN if self.host == _DOCKER_HUB else self.host}/{self.repository}"


@dataclass(frozen=True, slots=True)
class RegistriesConf:
    """The configuration in force."""

    search: tuple[str, ...] = (DEFAULT_DOMAIN,)
    registries: tuple[_Registry, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    enforcing: bool = False  # refuse a short name that several registries may have
    credential_helpers: tuple[str, ...] = ()

    def meanings(self, text: str) -> tuple[Reference, ...]:
        """Return the references that the name `text` may mean, in the order to try. Raises InvalidReference."""
        short = short_name(text)
        alias = self.aliases.get(short.path) if short is not None else None
        if short is not None and alias is not None:
            named = parse_reference(alias)
            tag = short.tag or ("" if short.digest else named.tag)
            return (Reference(named.domain, named.path, tag, short.digest),)
        return short_references(text, self.search)

    def to_pull(self, text: str) -> tuple[Reference, ...]:
        """Like `meanings`, but refuse names that are ambiguous by `short-name-mode`. Raises InvalidReference."""
        found = self.meanings(text)
        if self.enforcing and len(found) > 1:
            choice = ", ".join(str(reference) for reference in found)
            raise InvalidReference(
                f"parse reference {text!r}: short-name-mode is enforcing and the name may mean {choice}: write one"
            )
        return found

    def endpoints(self, reference: Reference) -> tuple[Endpoint, ...]:
        """Return the places for `reference`, in order: mirrors, then the registry. Raises RegistryBlocked."""
        insecure = frozenset(self._insecure_hosts())
        return tuple(replace(endpoint, insecure_hosts=insecure) for endpoint in self._endpoints(reference))

    def _endpoints(self, reference: Reference) -> tuple[Endpoint, ...]:
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

    def _insecure_hosts(self) -> Iterator[str]:
        for entry in self.registries:
            if entry.insecure and not entry.key.startswith("*."):
                yield _host(entry.location or entry.prefix)
            yield from (_host(mirror.location) for mirror in entry.mirror if mirror.insecure)

    def _entry(self, reference: Reference) -> tuple[_Registry | None, str]:
        """Return the entry with the longest matching prefix, and the matching text."""
        best: tuple[_Registry | None, str] = (None, "")
        longest = -1
        for entry in self.registries:
            matched = _match(entry.key, reference)
            if matched is not None and len(entry.key) > longest:
                best, longest = (entry, matched), len(entry.key)
        return best


def _serves(entry: _Registry, mirror: _Mirror, reference: Reference) -> bool:
    by_digest = bool(reference.digest)
    mode = mirror.pull_from_mirror or ("digest-only" if entry.mirror_by_digest_only else "all")
    return mode == "all" or (mode == "digest-only") == by_digest


def _match(prefix: str, reference: Reference) -> str | None:
    """Return the part of the reference that `prefix` matches, or None. `*.` matches any subdomain."""
    text = str(reference)
    end = len(prefix)
    if prefix.startswith("*."):
        at = text.find(prefix[1:])
        if at < 1 or "/" in text[:at]:
            return None
        end = at + len(prefix) - 1
    elif not text.startswith(prefix):
        return None
    return text[:end] if text[end : end + 1] in ("", "/", ":", "@") else None


def _endpoint(location: str, *, insecure: bool, mirror: bool) -> Endpoint:
    return Endpoint(_host(location), location.partition("/")[2], insecure, mirror)


def _host(location: str) -> str:
    host = location.partition("/")[0]
    return _DOCKER_HUB if host == DEFAULT_DOMAIN else host


def _origin(scheme: str, host: str) -> URL | None:
    try:
        return URL(f"{scheme}://{host}").origin()
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Return whether `host[:port]` names this machine literally (localhost, 127.0.0.0/8, [::1])."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def load(path: Path) -> RegistriesConf:
    """Read `path` and its drop-ins; missing files count as empty. Raises InvalidConfiguration naming the file."""
    search: tuple[str, ...] = (DEFAULT_DOMAIN,)
    mode, helpers = "permissive", tuple[str, ...]()
    aliases: dict[str, str] = {}
    registries: dict[str, _Registry] = {}
    for file in (path, *sorted(path.with_name(path.name + ".d").glob("*.conf"))):
        parsed = _read(file)
        if parsed.unqualified_search_registries is not None:
            search = parsed.unqualified_search_registries
        mode = parsed.short_name_mode or mode
        helpers = helpers if parsed.credential_helpers is None else parsed.credential_helpers
        aliases.update(parsed.aliases)
        registries.update((entry.key, entry) for entry in parsed.registry)
    in_force = {name: target for name, target in aliases.items() if target}  # an empty target removes an earlier alias
    return RegistriesConf(search, tuple(registries.values()), in_force, mode == "enforcing", helpers)


def _read(file: Path) -> _File:
    try:
        document = tomllib.loads(file.read_text())
        if "registries" in document:
            raise InvalidConfiguration(f"read {file}: version 1 format ([registries.*]): write [[registry]] tables")
        parsed = msgspec.convert(document, _File)
        _validate(parsed)
    except FileNotFoundError:
        return _File()
    except (OSError, ValueError, RecursionError, InvalidReference) as error:  # ValueError: from TOML, UTF-8 or msgspec
        raise InvalidConfiguration(f"read {file}: {error}") from error
    return parsed


def _validate(parsed: _File) -> None:
    if parsed.short_name_mode not in (None, *_SHORT_NAME_MODES):
        raise ValueError(f"short-name-mode {parsed.short_name_mode!r} must be one of {', '.join(_SHORT_NAME_MODES)}")
    for name, target in parsed.aliases.items():
        if (named := short_name(name)) is None or named.tag or named.digest:
            raise ValueError(f"[aliases] {name!r}: must be a name without registry, tag and digest")
        if target and (short_name(target) is not None or {":", "@"} & set(target.rpartition("/")[2])):
            raise ValueError(f"[aliases] {name}: {target!r} must be a name with its registry, without tag and digest")
    for entry in parsed.registry:
        _validate_registry(entry)


def _validate_registry(entry: _Registry) -> None:
    if not entry.location and not entry.prefix.startswith("*."):
        raise ValueError(f"[[registry]] {entry.prefix or '(no prefix)'}: location is missing")
    for place in (entry.location, *(m.location for m in entry.mirror)):
        if "://" in place or place.endswith("/") or "*" in place:
            raise ValueError(f"[[registry]] {entry.key}: location {place!r} must be host[:port][/path]")
    for mirror in entry.mirror:
        if mirror.pull_from_mirror not in ("", *_PULL_FROM_MIRROR):
            raise ValueError(f"[[registry]] {entry.key}: pull-from-mirror {mirror.pull_from_mirror!r} is unknown")
        if mirror.pull_from_mirror and entry.mirror_by_digest_only:
            raise ValueError(f"[[registry]] {entry.key}: mirror-by-digest-only and pull-from-mirror exclude each other")
