"""Asks the machine for what a container's end leaves open: who has a port, whose a file is, which process was killed.

It asks at once, while things are as they were: a minute later the port may be free. What it finds is recorded.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from image.errors import ImageError
from pods import bundle, foreign_files
from pods.clues import files, kernel_log, ports
from pods.errors import PodError
from pods.life.denied import denied

if TYPE_CHECKING:
    from image.store import ImageStore
    from pods.model import Container, Sandbox
    from pods.state.memory import State

_log = logging.getLogger("crisp.pods")
_SECONDS: Final = 1.0  # the longest that an exit waits
_MOST: Final = 16  # threads that may look: those that a file system holds must not use up what creations need
_NOT_EXECUTABLE: Final = 126  # a shell's exit code
_P = ParamSpec("_P")
_T = TypeVar("_T")


class EndClues:
    """Finds clues, in a thread: volumes may be on a file system that hangs."""

    def __init__(self, state: State, images: ImageStore) -> None:
        self._state = state
        self._images = images
        self._places = threading.Semaphore(_MOST)

    async def of_words(self, container: Container, sandbox: Sandbox, code: int, words: str) -> str:
        """Return what the last words do not say; "" if there is nothing, or it is not clear."""
        if not any(pattern.search(words) for pattern in (ports.TAKEN, files.DENIED, files.FULL)):
            return ""
        document = await asyncio.to_thread(bundle.read_config, self._state.settings.bundle_dir(container.id)) or {}
        try:
            async with asyncio.timeout(_SECONDS):
                if ports.TAKEN.search(words):
                    return await self._port(container, sandbox, document, words)
                return await self._file(container, document, words, runs=code == _NOT_EXECUTABLE)
        except (PodError, ImageError, OSError, TimeoutError, KeyError):
            return ""
        except Exception:  # a container chooses its last words: whatever they lead to, its exit must be recorded
            _log.warning("could not look at what the last words name", extra={"container": container.id}, exc_info=True)
            return ""

    async def _port(self, container: Container, sandbox: Sandbox, document: dict[str, Any], words: str) -> str:
        process = document.get("process", {})
        command = [*process.get("args", ()), *(one for one in process.get("env", ()) if one.startswith("PORT="))]
        declared = [one.container_port for one in sandbox.config.port_mappings]
        network = (sandbox.infra_pid, sandbox.netns) if sandbox.netns else ("self", "")
        found = await self._look("find who has a port", ports.holder, words, command, declared, *network)
        if found is None:
            return ""
        which = f"the only port taken in the pod's network, {found.port}," if found.guessed else f"port {found.port}"
        return f"{which} is held by {self._named(found, container)}"

    def _named(self, holder: ports.Holder, container: Container) -> str:
        process = f"process {holder.name!r} (pid {holder.pid})"
        record = self._state.containers.get(ports.first_known(holder.ids, self._state.containers))
        if record is None:
            return f"{process} of the node"
        other = record.container
        if other.sandbox_id == container.sandbox_id:
            return f"container {other.config.metadata.name!r} of this pod, {process}"
        pod = self._state.sandboxes.get(other.sandbox_id)
        of_pod = f" of pod {pod.sandbox.config.metadata.namespace}/{pod.sandbox.config.metadata.name}" if pod else ""
        return f"container {other.config.metadata.name!r}{of_pod}, {process}"

    async def _file(self, container: Container, document: dict[str, Any], words: str, *, runs: bool) -> str:
        upper = self._state.settings.container_root(container.id) / "upper"
        root: list[Path] = [upper, *self._images.layers_of(container.image_id)]
        if files.FULL.search(words):
            return await self._look("look at a full disk", files.full, words, document, root)
        found = await self._look("look at a file", files.denied, words, document, root, runs=runs)
        since = container.started_at / 1e9
        return found or await self._look("look at a label", denied, words, document, root, since)

    async def _look(self, what: str, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        def run() -> _T:
            if not self._places.acquire(blocking=False):
                raise BlockingIOError(f"{what}: {_MOST} others look, or wait for file systems")
            try:
                return work(*args, **kwargs)
            finally:
                self._places.release()

        return await foreign_files.touch(what, run)


async def of_memory(container_id: str, known: Collection[str], since: int = 0) -> str:
    """Return which processes of the container the kernel killed for lack of memory; "" if its log does not tell.

    `known` are the ids of all containers. `since` is a time of CLOCK_MONOTONIC in nanoseconds.
    """
    return await asyncio.to_thread(kernel_log.killed, container_id, known, since)
