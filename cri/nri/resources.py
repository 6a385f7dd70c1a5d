"""Converts limits of existing containers between NRI's messages and CRI's, as far as CRI can change them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import msgspec
from google.protobuf.message import Message

from cri.nri import checks
from cri.nri.errors import NriError
from cri.nri.owners import Owners
from cri.nri.v1alpha1 import api_pb2 as nri
from pods.model import Resources

_NAMES: Final = {
    "memory": {"limit": "memory_limit_in_bytes", "swap": "memory_swap_limit_in_bytes"},
    "cpu": {
        "shares": "cpu_shares",
        "quota": "cpu_quota",
        "period": "cpu_period",
        "cpus": "cpuset_cpus",
        "mems": "cpuset_mems",
    },
}
_WHERE: Final = "update.linux.resources"
_OTHERS: Final = {"hugepage_limits", "unified"}


def refuse_others(message: Message, supported: set[str], where: str) -> None:
    """Raise NriError for a set field that is not supported."""
    for descriptor, _ in message.ListFields():
        if descriptor.name not in supported:
            raise NriError(f"{where}.{descriptor.name}: crisp cannot adjust it")


def resources_message(limits: Resources) -> nri.LinuxResources:
    """Convert the limits that are set."""
    message = nri.LinuxResources()
    for group, names in _NAMES.items():
        part = getattr(message, group)
        for name, ours in names.items():
            if value := getattr(limits, ours):
                if isinstance(value, str):
                    setattr(part, name, value)
                else:
                    getattr(part, name).value = value
    for size, limit in limits.hugepage_limits.items():
        message.hugepage_limits.add(page_size=size, limit=limit)
    message.unified.update(limits.unified)
    return message


@dataclass(slots=True)
class _Wanted:
    limits: Resources
    owners: Owners = field(default_factory=Owners)
    ignore_failure: bool = True  # false if any plugin wants the failure reported


class Updates:
    """Plugins' changes of existing containers, by id. What one plugin sets, another may not set differently."""

    def __init__(self) -> None:
        self._wanted: dict[str, _Wanted] = {}
        self._evicted: dict[str, str] = {}

    def add(self, plugin: str, updates: list[nri.ContainerUpdate], evictions: list[nri.ContainerEviction]) -> None:
        """Add a plugin's changes. Raises NriError for limits that CRI lacks or refuses, and for conflicts."""
        for update in updates:
            wanted = self._wanted.setdefault(update.container_id, _Wanted(Resources()))
            wanted.limits = _changed(plugin, wanted, update.linux.resources)
            wanted.ignore_failure &= update.ignore_failure
        self._evicted.update({one.container_id: f"{plugin}: {one.reason}" for one in evictions})

    def take(self, container_id: str, limits: Resources) -> Resources:
        """Return the limits with the changes of that container, and remove them from here."""
        wanted = self._wanted.pop(container_id, None)
        if wanted is None:
            return limits
        changes = {name: value for name, value in msgspec.structs.asdict(wanted.limits).items() if value}
        for name in ("hugepage_limits", "unified"):
            changes[name] = {**getattr(limits, name), **changes.get(name, {})}
        return msgspec.structs.replace(limits, **changes)

    def others(self) -> list[tuple[str, Resources, bool]]:
        """Return container, limits, and whether to ignore a failure, for each."""
        return [(name, wanted.limits, wanted.ignore_failure) for name, wanted in self._wanted.items()]

    def messages(self) -> list[nri.ContainerUpdate]:
        """Return all changes as messages, for validating plugins."""
        return [
            nri.ContainerUpdate(
                container_id=name,
                linux=nri.LinuxContainerUpdate(resources=resources_message(wanted.limits)),
                ignore_failure=wanted.ignore_failure,
            )
            for name, wanted in self._wanted.items()
        ]

    def evictions(self) -> dict[str, str]:
        """Return the reasons for evictions by container."""
        return self._evicted


def _changed(plugin: str, wanted: _Wanted, message: nri.LinuxResources) -> Resources:
    refuse_others(message, {*_NAMES, *_OTHERS}, _WHERE)
    checks.resources(_WHERE, message)
    changes: dict[str, object] = {}
    for group, names in _NAMES.items():
        part = getattr(message, group)
        refuse_others(part, set(names), f"{_WHERE}.{group}")
        for descriptor, value in part.ListFields():
            wanted.owners.own(plugin, f"linux.resources.{group}.{descriptor.name}")
            changes[names[descriptor.name]] = getattr(value, "value", value)
    pages, unified = dict(wanted.limits.hugepage_limits), dict(wanted.limits.unified)
    for limit in message.hugepage_limits:
        wanted.owners.own(plugin, "linux.resources.hugepage_limits", limit.page_size)
        pages[limit.page_size] = limit.limit
    for name, value in message.unified.items():
        wanted.owners.own(plugin, "linux.resources.unified", name)
        unified[name] = value
    return msgspec.structs.replace(wanted.limits, **changes, hugepage_limits=pages, unified=unified)
