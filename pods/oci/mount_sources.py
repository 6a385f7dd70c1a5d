"""The host side of a container's mounts: resolves paths, checks propagation, makes missing directories."""

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
    """Return the real host path of each mount, with links followed, whether it exists or not; "" for a mounted image.

    Raises InvalidArgument for a path on a mount that cannot propagate as requested.
    """
    sources = tuple("" if m.image is not None else os.path.realpath(m.host_path) for m in mounts)
    if any(mount.propagation is not Propagation.PRIVATE for mount in mounts):
        check_propagation(mounts, sources, mountinfo.read_text(errors="surrogateescape"))
    return sources


def check_relabelling(mounts: Iterable[Mount], sources: Iterable[str], label: str) -> None:
    """Check that every mount to relabel may get `label`; "" means none. Raises InvalidArgument."""
    for source, field in _relabelled(mounts, sources, label):
        selinux.check(source, field)


def prepare(mounts: Iterable[Mount], sources: Sequence[str], label: str) -> None:
    """Make missing directories with mode 0755, and relabel the mounts that ask for it, unless `label` is "".

    `sources` are the mounts' real paths. Raises InvalidArgument if a directory cannot be made or relabelled.
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
    """Yield the paths to relabel, and the fields that request it."""
    for index, (mount, source) in enumerate(zip(mounts, sources, strict=True)):
        if label and mount.selinux_relabel and source:
            yield source, f"config.mounts[{index}].selinux_relabel"


def check_propagation(mounts: Iterable[Mount], sources: Iterable[str], mountinfo: str) -> None:
    """Refuse a Bidirectional mount of an unshared mount, and a HostToContainer mount of a private one.

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
            raise InvalidArgument(f"{field}: {where} not shared: run `mount --make-shared` on it")
        if mount.propagation is Propagation.HOST_TO_CONTAINER and not (host.shared or host.slave):
            raise InvalidArgument(f"{field}: {where} neither shared nor a slave: run `mount --make-shared` on it")


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
    # Of mounts stacked on one mount point the last is on top.
    return max(enumerate(below), key=lambda item: (len(item[1].point), item[0]))[1]
