"""The host's side of a container's mounts: what a volume's path is, whether it can propagate mounts, what is made."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pods.directories import make_directories
from pods.errors import InvalidArgument
from pods.model import Mount, Propagation
from pods.security import selinux


@dataclass(frozen=True, slots=True)
class _HostMount:
    point: str
    shared: bool
    slave: bool


def resolve_sources(mounts: tuple[Mount, ...], mountinfo: Path = Path("/proc/self/mountinfo")) -> tuple[str, ...]:
    """The real host path of each mount, symbolic links followed, whether there is something at it or not.

    A mount of an image has none: "" is in its place.

    Raises InvalidArgument for what lies on a mount that cannot propagate as asked for.
    """
    sources = tuple("" if m.image is not None else os.path.realpath(m.host_path) for m in mounts)
    if any(mount.propagation is not Propagation.PRIVATE for mount in mounts):
        check_propagation(mounts, sources, mountinfo.read_text(errors="surrogateescape"))
    return sources


def check_relabelling(mounts: Iterable[Mount], sources: Iterable[str], label: str) -> None:
    """Refuse to give `label`, unless it is "", to what must not have it. Raises InvalidArgument."""
    for source, field in _relabelled(mounts, sources, label):
        selinux.check(source, field)


def prepare(mounts: Iterable[Mount], sources: Sequence[str], label: str) -> None:
    """Make what is missing, directories of mode 0755, and give `label`, unless it is "", to mounts that ask for it.

    `sources` are the mounts' real paths. Raises InvalidArgument for what cannot be made or relabelled.
    """
    for index, source in enumerate(sources):
        try:
            if source and not os.path.lexists(source):
                make_directories(source)
        except OSError as error:
            reason = f"make directory {source!r}: {error.strerror}"
            raise InvalidArgument(f"config.mounts[{index}].host_path: {reason}") from error
    for source, field in _relabelled(mounts, sources, label):
        selinux.relabel(source, label, field)


def _relabelled(mounts: Iterable[Mount], sources: Iterable[str], label: str) -> Iterator[tuple[str, str]]:
    """The paths, and the fields that ask for it."""
    for index, (mount, source) in enumerate(zip(mounts, sources, strict=True)):
        if label and mount.selinux_relabel and source:
            yield source, f"config.mounts[{index}].selinux_relabel"


def check_propagation(mounts: Iterable[Mount], sources: Iterable[str], mountinfo: str) -> None:
    """Refuse a Bidirectional mount of what is not shared, and a HostToContainer one of what is private.

    `mountinfo` is the text of /proc/self/mountinfo (proc(5)). Raises InvalidArgument.
    """
    table = [_parse(line) for line in mountinfo.splitlines()]
    for index, (mount, source) in enumerate(zip(mounts, sources, strict=True)):
        if mount.propagation is Propagation.PRIVATE:
            continue
        host = _mount_of(source, table)
        field = f"config.mounts[{index}].propagation"
        where = f"{source!r} is on the mount {host.point!r}, which is"
        if mount.propagation is Propagation.BIDIRECTIONAL and not host.shared:
            raise InvalidArgument(f"{field}: {where} not shared (mount --make-shared)")
        if mount.propagation is Propagation.HOST_TO_CONTAINER and not (host.shared or host.slave):
            raise InvalidArgument(f"{field}: {where} neither shared nor a slave (mount --make-shared)")


def _parse(line: str) -> _HostMount:
    fields = line.split(" ")
    optional = fields[6 : fields.index("-")]
    point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
    return _HostMount(
        point,
        shared=any(tag.startswith("shared:") for tag in optional),
        slave=any(tag.startswith("master:") for tag in optional),
    )


def _mount_of(path: str, table: list[_HostMount]) -> _HostMount:
    below = [mount for mount in table if path == mount.point or path.startswith(mount.point.rstrip("/") + "/")]
    # Of mounts stacked on one point the last is on top.
    return max(enumerate(below), key=lambda item: (len(item[1].point), item[0]))[1]
