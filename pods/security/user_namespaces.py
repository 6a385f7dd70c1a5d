"""User namespaces of pods (CRI `UserNamespace`): checks requests and converts mappings for the runtime."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from linux.tables import HIGHEST_ID
from pods.errors import FailedPrecondition, InvalidArgument
from pods.model import IDMapping, NamespaceMode, NamespaceOptions, SandboxConfig, UserNamespace
from runtime.errors import SpecError
from runtime.namespaces.user import IDMappings
from runtime.spec.values import IDMapping as Line
from runtime.wire.calls import Identity, UserMappings

_MOST_LINES = 340  # user_namespaces(7)


def mappings_of(config: SandboxConfig) -> IDMappings | None:
    """Return the mappings of the pod's user namespace; None if it shares the host's."""
    userns = config.security.namespaces.userns
    if userns is None or userns.mode is NamespaceMode.NODE:
        return None
    return id_mappings(userns.uids, userns.gids)


def id_mappings(uids: Iterable[IDMapping], gids: Iterable[IDMapping]) -> IDMappings:
    """Convert CRI's mappings to the runtime's."""
    return IDMappings(*(tuple(Line(m.container_id, m.host_id, m.length) for m in lines) for lines in (uids, gids)))


def oci_lines(mappings: Iterable[IDMapping]) -> list[dict[str, int]]:
    """Convert CRI's mappings to config.json's."""
    return [{"containerID": m.container_id, "hostID": m.host_id, "size": m.length} for m in mappings]


def check_pod(options: NamespaceOptions, field: str, refusal: str) -> None:
    """Refuse an impossible user namespace: InvalidArgument; FailedPrecondition if the machine has none (`refusal`).

    `field` is the CRI path of the NamespaceOption.
    """
    userns = options.userns
    if userns is None:
        return
    field = f"{field}.userns_options"
    if userns.mode is NamespaceMode.NODE:
        if userns.uids or userns.gids:
            raise InvalidArgument(f"{field}: mode NODE has no mappings")
        return
    # Both are the host's own: no process in a user namespace has rights in them.
    for name in ("pid", "ipc"):
        if getattr(options, name) is NamespaceMode.NODE:
            raise InvalidArgument(f"{field}: the host's {name.upper()} namespace cannot be used with a user namespace")
    for name, mappings in (("uids", userns.uids), ("gids", userns.gids)):
        check_mappings(mappings, f"{field}.{name}")
        if not any(mapping.container_id == 0 for mapping in mappings):
            raise InvalidArgument(f"{field}.{name}: id 0 is not mapped")
    if refusal:
        raise FailedPrecondition(f"{field}: this node cannot give pods user namespaces: {refusal}")


def check_mappings(mappings: Sequence[IDMapping], field: str) -> None:
    """Refuse mappings that the kernel refuses: none, too many, out of range, overlapping. Raises InvalidArgument."""
    if not 0 < len(mappings) <= _MOST_LINES:
        raise InvalidArgument(f"{field}: {len(mappings)} mappings, not between 1 and {_MOST_LINES}")
    for side in ("container_id", "host_id"):
        ranges = sorted((getattr(m, side), getattr(m, side) + m.length) for m in mappings)
        if ranges[-1][1] > HIGHEST_ID + 1:
            raise InvalidArgument(f"{field}: {side} {ranges[-1][0]} and its range go beyond {HIGHEST_ID}")
        for (_, end), (start, _) in pairwise(ranges):
            if start < end:
                raise InvalidArgument(f"{field}: {side} {start} is mapped twice")


def check_container(options: NamespaceOptions, pod: NamespaceOptions, field: str) -> None:
    """Refuse a container whose user namespace is not its pod's. Raises InvalidArgument."""
    if _asked(options.userns) != _asked(pod.userns):
        raise InvalidArgument(f"{field}.userns_options: must be the same as the pod sandbox's")


def _asked(userns: UserNamespace | None) -> UserNamespace | None:
    return None if userns is None or userns.mode is NamespaceMode.NODE else userns


def check_user(user: Identity, mappings: IDMappings) -> None:
    """Refuse a user or group without a mapping in the pod's user namespace. Raises InvalidArgument."""
    try:
        mappings.uid(user.uid)
        for gid in (user.gid, *user.additional_gids):
            mappings.gid(gid)
    except SpecError as error:
        raise InvalidArgument(f"config.linux.security_context: run_as_user, groups: {error.reason}") from error


def give(path: Path, mappings: IDMappings | None) -> None:
    """Give a file to the root user of the pod's user namespace."""
    if mappings is not None:
        os.chown(path, *mappings.root)


def shim_argument(mappings: IDMappings | None) -> UserMappings | None:
    return UserMappings(*mappings.lines()) if mappings is not None else None
