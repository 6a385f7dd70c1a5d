"""Layers that are mounted, and where crispd finds their roots."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from image.erofs.mount import mount
from image.erofs.seal import Seal


@dataclass(frozen=True, slots=True)
class Mounted:
    """A layer that the kernel has mounted, by the path of its root."""

    root: Path
    unmount: Callable[[], None]


class Mounting(Protocol):
    """A way to mount the layer in a directory: `held`, or that of `image.erofs.attached`."""

    def __call__(self, directory: str | os.PathLike[str], seal: Seal | None) -> Mounted: ...


def held(directory: str | os.PathLike[str], seal: Seal | None) -> Mounted:
    """Mount the layer in `directory`, by a descriptor that this process keeps. Raises OSError, Changed."""
    descriptor = mount(directory, seal)
    return Mounted(name_of(descriptor), partial(os.close, descriptor))


def name_of(mounted: int) -> Path:
    """Return a path for a mount that only our descriptor holds. Processes that may inspect this one can use it."""
    return Path(f"/proc/{os.getpid()}/fd/{mounted}")
