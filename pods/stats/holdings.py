"""Finds what holds the disk: images, writable layers, logs, recordings, and what is nobody's."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pods.model import Container, ContainerState, Sandbox
from pods.stats.tally import Tally

if TYPE_CHECKING:
    from image.shelf.accounting import StoreBytes

_KNOWN: Final = ("image", "containers", "recorder")  # in the root directory; the rest is the daemon's own


@dataclass(frozen=True, slots=True)
class Holding:
    """What holds bytes.

    `kind`: "image", "shared layers", "container" (its writable layer and its image's volumes), "log", "recordings",
    "own" (databases and caches), "unfinished" or "stray". `shared`: bytes beside `bytes` that others hold, too.
    `frees`: what the removal of the object frees, 0 while it is in use. `users`: who uses it.
    """

    kind: str
    name: str
    bytes: int
    id: str = ""
    shared: int = 0
    frees: int = 0
    users: tuple[str, ...] = ()


def of_images(store: StoreBytes, containers: Sequence[Container], pods: dict[str, Sandbox]) -> Iterator[Holding]:
    """Yield the holdings of the image store."""
    users: dict[str, list[str]] = {}
    for container in containers:
        for image_id in dict.fromkeys(container.images):
            users.setdefault(image_id, []).append(name_of(container, pods))
    for one in store.images:
        image = one.image
        name = ", ".join(image.repo_tags or image.repo_digests) or "<none>"
        by = ["an additional store"] if one.additional else users.get(image.id, [])
        frees = 0 if by else one.own
        yield Holding("image", name, one.own, image.id, one.shared, frees, tuple(by))
    if store.shared:
        yield Holding("shared layers", "of several images", store.shared, frees=store.shared_unused)


def of_containers(
    root: Path, containers: Iterable[Container], pods: dict[str, Sandbox], stopped: threading.Event
) -> Iterator[Holding]:
    """Yield the holdings of containers: writable layers and logs. Reads the disk."""
    for one in containers:
        name = name_of(one, pods)
        size = tree(root / "containers" / one.id, stopped)
        runs = one.state is ContainerState.RUNNING
        users = ("it runs",) if runs else ()
        yield Holding("container", name, size, one.id, frees=0 if runs else size, users=users)
        if one.log_path:
            yield Holding("log", name, _logs(Path(one.log_path)), one.id)


def of_rest(root: Path, store: StoreBytes, known: frozenset[str], stopped: threading.Event) -> Iterator[Holding]:
    """Yield what belongs to no image or container; `known` are the ids of all containers. Reads the disk."""
    yield Holding("recordings", "of what happened to pods (crisp why)", tree(root / "recorder", stopped))
    others = [path for path in root.iterdir() if path.name not in _KNOWN]
    yield Holding("own", "databases and caches", store.own_files + sum(tree(path, stopped) for path in others))
    for kind, paths in (("unfinished", store.unfinished), ("stray", store.strays)):
        for path in paths:
            yield Holding(kind, os.fspath(path), tree(path, stopped))
    with contextlib.suppress(FileNotFoundError):
        for path in (root / "containers").iterdir():
            if path.name not in known:
                size = tree(path, stopped)
                yield Holding("stray", os.fspath(path), size, frees=size)


def name_of(container: Container, pods: dict[str, Sandbox]) -> str:
    """Return namespace/pod/container, as far as known."""
    pod = pods.get(container.sandbox_id)
    own = container.config.metadata.name
    return f"{pod.config.metadata.namespace}/{pod.config.metadata.name}/{own}" if pod is not None else own


def tree(path: Path, stopped: threading.Event) -> int:
    """Return the bytes of a file or a tree; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        tally = Tally(stopped.is_set)
        tally.add(path)
        return round(tally.bytes)
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0


def _logs(path: Path) -> int:
    """Return the bytes of a log with those that kubelet has rotated (NAME.TIME, NAME.TIME.gz)."""
    size = 0
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name == path.name or entry.name.startswith(f"{path.name}."):
                size += entry.stat(follow_symlinks=False).st_blocks * 512
    return size
