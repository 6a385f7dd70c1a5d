"""Defines what a shim leaves to its successor: records that its keeper keeps beside the descriptors.

A successor has the version of its keeper, which is the shim's own, or another one if the shim is renewed. So records
follow the rule of `runtime.wire.values`: members are only ever added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

from runtime.light import json
from runtime.shim.deposits import Entry
from runtime.wire.calls import Create, ExitStatus, MakePod, MakeSandbox, Start
from runtime.wire.values import Value, optional

if TYPE_CHECKING:
    from runtime.wire.values import Readers

POD_KEY: Final = "pod"
SANDBOX_KEY: Final = "sandbox"
JOURNAL_KEY: Final = "journal"
PARENTS_KEY: Final = "parents"  # with it are sockets of keepers that are the parents of processes
_CONNECTION: Final = "connection "
_CONTAINER: Final = "container "


_Kind = TypeVar("_Kind", bound="Estate")


class Estate(Value):
    """A record that can be deposited."""

    __slots__ = ()

    def encode(self) -> bytes:
        return json.dumps(self.to_json(), separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class PodEstate(Estate):
    """A pod. With it are descriptors: the infra process, if it lives, the user namespace, if any, and the listener."""

    READ: ClassVar[Readers] = {"make": MakePod.from_json}

    make: MakePod
    infra_pid: int
    infra_alive: bool
    user_namespace: bool


@dataclass(frozen=True, slots=True)
class SandboxEstate(Estate):
    """A pod's sandbox, if it has one. With it is a descriptor of its process."""

    READ: ClassVar[Readers] = {"make": MakeSandbox.from_json}

    make: MakeSandbox
    pid: int


@dataclass(frozen=True, slots=True)
class ContainerEstate(Estate):
    """A container. `fds` names the descriptors that are with it, in their order."""

    READ: ClassVar[Readers] = {
        "create": Create.from_json,
        "fds": tuple,
        "start": optional(Start),
        "exit": optional(ExitStatus),
    }

    create: Create
    state: str
    fds: tuple[str, ...] = ()
    start: Start | None = None  # without its filter
    pid: int = 0
    started_at: int = 0
    exit: ExitStatus | None = None
    cgroup: str = ""
    hooks_ran: bool = False
    oom_kills_above: int = 0
    oom_score_adj: int = 0  # changed since the start; 0 if it was not
    places: Mapping[str, int] = field(default_factory=dict)  # of its outputs in the journal, by name
    holder: int = 0  # pid of the scope's placeholder, if there is one


@dataclass(frozen=True, slots=True)
class ConnectionEstate(Estate):
    """A connection to crispd, which a shim that is renewed leaves. With it is its socket."""

    asked: int | None = None  # number of the call that is to be answered when the successor serves


def unreadable(entries: Mapping[str, Entry]) -> str:
    """Return why records of another version cannot be read, or ""."""
    for key, entry in entries.items():
        try:
            if is_container(key):
                read(ContainerEstate, entry)
            elif is_connection(key):
                read(ConnectionEstate, entry)
            elif key in _KINDS:
                read(_KINDS[key], entry)
            elif key not in (JOURNAL_KEY, PARENTS_KEY):
                return f"it does not know {key!r}"
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return f"record of {key!r}: {error}"
    return "" if POD_KEY in entries else "there is no record of the pod"


def read(kind: type[_Kind], entry: Entry) -> _Kind:
    """Return an entry's record."""
    return kind.from_json(json.loads(entry.record))


def container_key(container_id: str) -> str:
    return f"{_CONTAINER}{container_id}"


def is_container(key: str) -> bool:
    return key.startswith(_CONTAINER)


def connection_key(number: int) -> str:
    return f"{_CONNECTION}{number}"


def is_connection(key: str) -> bool:
    return key.startswith(_CONNECTION)


_KINDS: Final[Mapping[str, type[Estate]]] = {POD_KEY: PodEstate, SANDBOX_KEY: SandboxEstate}
