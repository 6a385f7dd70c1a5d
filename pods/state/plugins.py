"""The seam that plugins look through at the life of pods; there is nothing behind it while none is connected."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pods.model import Container, Resources, Sandbox


class Moment(Enum):
    """What happens to a sandbox or container, by the names of NRI's calls."""

    RUN_SANDBOX = "RunPodSandbox"
    POST_UPDATE_SANDBOX = "PostUpdatePodSandbox"
    STOP_SANDBOX = "StopPodSandbox"
    REMOVE_SANDBOX = "RemovePodSandbox"
    POST_CREATE = "PostCreateContainer"
    START = "StartContainer"
    POST_START = "PostStartContainer"
    POST_UPDATE = "PostUpdateContainer"
    STOP = "StopContainer"
    REMOVE = "RemoveContainer"


class Plugins(Protocol):
    """What is told of pods and may have a say."""

    async def happens(self, moment: Moment, sandbox: Sandbox, container: Container | None = None) -> None:
        """Tell the plugins. Raises PodError when one of them objects."""

    async def happened(
        self,
        moment: Moment,
        sandbox: Sandbox,
        container: Container | None = None,
        document: dict[str, Any] | None = None,
    ) -> None:
        """Tell plugins of what cannot be undone. `document` is the config.json of a container without bundle."""

    async def adjusted(self, sandbox: Sandbox, container: Container, document: dict[str, Any]) -> dict[str, Any]:
        """The container's config.json as plugins want it. Raises PodError when one objects, or asks what cannot be."""

    async def updated(self, sandbox: Sandbox, container: Container, wanted: Resources) -> Resources:
        """The limits that the container is to get, as plugins want them. Raises PodError as `adjusted` does."""

    async def sandbox_updates(self, sandbox: Sandbox, overhead: Resources | None, resources: Resources | None) -> None:
        """Tell the plugins of a pod's new sums. Raises PodError when one of them objects."""


class PluginGate:
    """Lets what plugins hear of pass freely, except while one that is new is told what there is already.

    What passes stays inside from the plugins' hearing of it until it is seen in the lists: a new plugin misses nothing.
    """

    def __init__(self) -> None:
        self._inside = 0
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._closing = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """Be inside; never twice at once, for the second may wait for the first."""
        while not self._open.is_set():
            await self._open.wait()
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @contextlib.asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Nothing is inside and nothing enters."""
        async with self._closing:
            self._open.clear()
            try:
                await self._empty.wait()
                yield
            finally:
                self._open.set()
