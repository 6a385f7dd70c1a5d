"""Attaches mounted layers where nobody sees them: before Linux 6.15 overlayfs takes no detached mounts as layers."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from image.erofs.mount import mount
from image.erofs.mounted import Mounted
from image.erofs.seal import Seal
from linux import empty_root, syscalls

_LAYERS: Final = 1 << 20
_Result = TypeVar("_Result")


class Attached:
    """Mounts layers in a mount namespace that has nothing else. A thread of this process is in it, and keeps it.

    A layer's name is /proc/PID/task/TID/root/NUMBER. Who makes an overlay joins the thread's namespace, and clones the
    layers' mounts (runtime/rootfs/overlay.py). Raises OSError.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._thread = ThreadPoolExecutor(1, "layers")
        self._run(partial(empty_root.enter, inodes=_LAYERS))
        self._root = Path(f"/proc/{os.getpid()}/task/{self._run(threading.get_native_id)}/root")

    def mount(self, directory: str | os.PathLike[str], seal: Seal | None) -> Mounted:
        """Mount the layer in `directory`. Raises OSError, Changed."""
        descriptor = mount(directory, seal)
        try:
            place = f"/{next(self._numbers)}"
            self._run(partial(_attach, descriptor, place))
        finally:
            os.close(descriptor)
        return Mounted(self._root / place[1:], lambda: self._run(partial(_detach, place)))

    def with_roots(self, function: Callable[[Sequence[Path]], None], roots: Sequence[Path]) -> None:
        """Run a function in the namespace, with the layers' names there."""
        self._run(partial(function, [Path("/", root.name) for root in roots]))

    def _run(self, function: Callable[[], _Result]) -> _Result:
        return self._thread.submit(function).result()

    def close(self) -> None:
        """End the thread, and with it the mounts that no overlay has."""
        self._thread.shutdown()


def _attach(descriptor: int, place: str) -> None:
    os.mkdir(place)
    syscalls.move_mount(descriptor, syscalls.AT_FDCWD, place)


def _detach(place: str) -> None:
    syscalls.umount2(place, syscalls.MNT_DETACH)
    os.rmdir(place)
