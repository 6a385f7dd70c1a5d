"""What there is to say of a key of crisp.toml, and how a field of the Configuration says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum, auto
from typing import Any, TypeVar

from cri.daemon.kinds import Kind

T = TypeVar("T")
_METADATA = "key"


class Component(Enum):
    """Who acts on a key. Each but the daemon is made of all its keys, by the names of its own arguments."""

    DAEMON = auto()
    NODE = auto()
    IMAGES = auto()
    STREAMING = auto()
    TRACING = auto()


@dataclass(frozen=True, slots=True)
class Flag:
    """crispd's flag for a key: what its argument is called, what --help says, and its name where not the key's."""

    argument: str
    help: str
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One setting. `unit` is "" for what is no amount; `attribute` is its name for the component that gets it."""

    name: str
    kind: Kind[Any]
    default: Any
    section: str
    text: str
    unit: str
    flag: Flag | None
    reloaded: bool  # put in force by SIGHUP; the rest takes a restart
    component: Component
    attribute: str

    @property
    def option(self) -> str:
        """How the command line names it."""
        return "--" + ((self.flag and self.flag.name) or self.name.replace("_", "-"))

    @property
    def takes(self) -> str:
        """In words, what its values are."""
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
    """The field of a dataclass that is a key; its arguments are members of `Key`."""
    said = {
        "kind": kind, "default": default, "section": section, "text": text, "unit": unit, "flag": flag,
        "reloaded": reloaded, "component": to, "attribute": attribute,
    }  # fmt: skip
    return field(default_factory=lambda: default, metadata={_METADATA: said})


def keys_of(configuration: type) -> Mapping[str, Key]:
    """The keys that are fields of a dataclass, by name and in their order."""
    found = {}
    for member in fields(configuration):
        if _METADATA in member.metadata:
            said = member.metadata[_METADATA]
            found[member.name] = Key(name=member.name, **{**said, "attribute": said["attribute"] or member.name})
    return found
