"""Describes the keys of crisp.toml, and attaches the descriptions to the fields of the Configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum, auto
from typing import Any, TypeVar

from cri.daemon.kinds import Kind

T = TypeVar("T")
_METADATA = "key"


class Component(Enum):
    """The component that uses a key. All except the daemon are constructed from their keys, by argument name."""

    DAEMON = auto()
    NODE = auto()
    IMAGES = auto()
    STREAMING = auto()
    TRACING = auto()


@dataclass(frozen=True, slots=True)
class Flag:
    """crispd's flag for a key: the name of its argument, its help text, and its name if not the key's."""

    argument: str
    help: str
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One setting. `unit` is "" unless it is an amount; `attribute` is the name of its component's argument."""

    name: str
    kind: Kind[Any]
    default: Any
    section: str
    text: str
    unit: str
    flag: Flag | None
    reloaded: bool  # applied on SIGHUP; other keys need a restart
    component: Component
    attribute: str

    @property
    def option(self) -> str:
        """The flag's name on the command line."""
        return "--" + ((self.flag and self.flag.name) or self.name.replace("_", "-"))

    @property
    def takes(self) -> str:
        """Its possible values, in words."""
        return self.kind.words + (f", in {self.unit}" if self.unit else "")


def setting(
    section: str,
    kind: Kind[T],
    default: T,
    text: str,
    *,
    unit: str = "",
    flag: Flag | None = None,
    reloaded: bool = False,
    to: Component = Component.DAEMON,
    attribute: str = "",
) -> T:
    """Make a dataclass field that is a key. The arguments are members of `Key`."""
    said = {
        "kind": kind, "default": default, "section": section, "text": text, "unit": unit, "flag": flag,
        "reloaded": reloaded, "component": to, "attribute": attribute,
    }  # fmt: skip
    return field(default_factory=lambda: default, metadata={_METADATA: said})


def keys_of(configuration: type) -> Mapping[str, Key]:
    """Return the keys among a dataclass's fields, by name and in order."""
    found = {}
    for member in fields(configuration):
        if _METADATA in member.metadata:
            said = member.metadata[_METADATA]
            found[member.name] = Key(name=member.name, **{**said, "attribute": said["attribute"] or member.name})
    return found
