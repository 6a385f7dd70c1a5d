"""The interface through which plugins take part in the life of pods; unused while none is connected."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pods.model import Container, Resources, Sandbox


class PluginEvent(Enum):
    """The events of sandboxes and containers, by the names of NRI's calls."""

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
    """The plugins of a node: they hear of pods and may object to, or change, what happens."""

    async def happens(self, event: PluginEvent, sandbox: Sandbox, container: Container | None = None) -> None:
        """Tell the plugins. Raises PodError if one objects."""

    async def happened(
        self,
        event: PluginEvent,
        sandbox: Sandbox,
        container: Container | None = None,
        document: dict[str, Any] | None = None,
    ) -> None:
        """Tell the plugins what cannot be undone. `document` is the config.json of a container without a bundle."""

    async def adjusted(self, sandbox: Sandbox, container: Container, document: dict[str, Any]) -> dict[str, Any]:
        """Return config.json with the plugins' changes. Raises PodError if one objects or asks for the impossible."""

    async def updated(self, sandbox: Sandbox, container: Container, wanted: Resources) -> Resources:
        """Return the container's new limits with the plugins' changes. Raises PodError as `adjusted` does."""

    async def sandbox_updates(self, sandbox: Sandbox, overhead: Resources | None, resources: Resources | None) -> None:
        """Tell the plugins a pod's new totals. Raises PodError if one objects."""


class RequiredPlugins(Protocol):
    """The plugins without which no pod or container is made."""

    def missing(self) -> list[str]:
        """Return the names of those that are not connected."""

    async def ready(self, *, wait: bool) -> None:
        """Return if all are connected, after waiting for those that may be waited for. Raises Unavailable."""


class PluginGate:
    """Keeps a new plugin from missing, or hearing twice of, a pod or container.

    An operation is inside the gate from when plugins hear of its object until the object is in the lists. While a new
    plugin gets the initial list, the gate is closed and empty.
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
        """Enter the gate. Never enter twice: the second entry may wait for the first."""
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
        """Close the gate and wait until nothing is inside."""
        async with self._closing:
            self._open.clear()
            try:
                await self._empty.wait()
                yield
            finally:
                self._open.set()
