"""Localhost seccomp profiles: JSON files on the node, in the extended form that Docker introduced.

The extended form adds `archMap`, and `includes` and `excludes` (caps, arches, minKernel) to rules; both are resolved
here, and the plain OCI `linux.seccomp` is left.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pods.errors import InvalidArgument

if TYPE_CHECKING:
    from pods.host import HostFacts

_MAX_BYTES: Final = 1 << 20
_FIELD: Final = "config.linux.security_context.seccomp.localhost_ref"
_RULE_MEMBERS: Final = ("names", "action", "errnoRet", "args")


def read_profile(path: Path, capabilities: frozenset[str], host: HostFacts) -> dict[str, Any]:
    """`linux.seccomp` of the profile at an absolute path. Raises InvalidArgument naming the file and member."""
    if not path.is_absolute():
        raise InvalidArgument(f"{_FIELD}: {str(path)!r} is not an absolute path")
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InvalidArgument(f"{_FIELD}: {str(path)!r}: {error.strerror}") from error
    if len(text) > _MAX_BYTES:
        raise InvalidArgument(f"{_FIELD}: {str(path)!r} is larger than {_MAX_BYTES} bytes")
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"{_FIELD}: {str(path)!r} is not JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("defaultAction"), str):
        raise InvalidArgument(f"{_FIELD}: {str(path)!r}: defaultAction: missing")
    return _reduce(document, str(path), capabilities, host)


def _reduce(document: dict[str, Any], path: str, capabilities: frozenset[str], host: HostFacts) -> dict[str, Any]:
    rules = document.get("syscalls") or []
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise InvalidArgument(f"{_FIELD}: {path!r}: syscalls: expected a list of objects")
    kept = []
    for index, rule in enumerate(rules):
        try:
            applies = _applies(rule, capabilities, host)
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidArgument(f"{_FIELD}: {path!r}: syscalls[{index}]: {error}") from error
        if applies:
            plain = {member: rule[member] for member in _RULE_MEMBERS if rule.get(member) is not None}
            if "name" in rule:
                plain.setdefault("names", [rule["name"]])
            kept.append(plain)
    reduced = {"defaultAction": document["defaultAction"], "syscalls": kept}
    for member in ("defaultErrnoRet", "flags", "listenerPath", "listenerMetadata"):
        if document.get(member) is not None:
            reduced[member] = document[member]
    reduced["architectures"] = document.get("architectures") or _architectures(document.get("archMap") or [], host)
    return reduced


def _applies(rule: dict[str, Any], capabilities: frozenset[str], host: HostFacts) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    if not capabilities.issuperset(includes.get("caps") or ()):
        return False
    if includes.get("arches") and host.architecture not in includes["arches"]:
        return False
    if includes.get("minKernel") and host.kernel < _version(includes["minKernel"]):
        return False
    if capabilities.intersection(excludes.get("caps") or ()) or host.architecture in (excludes.get("arches") or ()):
        return False
    return not (excludes.get("minKernel") and host.kernel >= _version(excludes["minKernel"]))


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _architectures(mapping: list[dict[str, Any]], host: HostFacts) -> list[str]:
    own = {"amd64": "SCMP_ARCH_X86_64", "arm64": "SCMP_ARCH_AARCH64"}.get(host.architecture)
    for entry in mapping:
        if entry.get("architecture") == own:
            return [own, *entry.get("subArchitectures", ())]
    return []
