"""RemoveContainer, and the removal of containers that an earlier daemon left unfinished."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from pods import bundle, handlers, log_fields
from pods.errors import NotFound, PodError
from pods.model import Container
from pods.state.plugins import PluginEvent
from pods.state.transitions import can_stop
from runtime.client import ShimGone
from runtime.wire.calls import Delete

if TYPE_CHECKING:
    from image.store import ImageStore
    from pods.cgroups.driver import Cgroups
    from pods.inflight import Background
    from pods.life.shims import Shims
    from pods.life.stop import Stops
    from pods.state.memory import State

_log = logging.getLogger("crisp.pods")


class Removals:
    """Removes containers completely."""

    def __init__(
        self,
        state: State,
        shims: Shims,
        images: ImageStore,
        stops: Stops,
        cgroups: Cgroups,
        background: Background,
    ) -> None:
        self._state = state
        self._shims = shims
        self._cgroups = cgroups
        self._images = images
        self._stops = stops
        self._background = background

    async def remove(self, container_id: str) -> None:
        """Kill the container if it runs, and remove everything of it. Succeeds for an unknown id."""
        try:
            found = self._state.find_container(container_id).container.id
        except NotFound:
            return
        await self._background.shielded(self._remove(found))

    async def _remove(self, container_id: str) -> None:
        while not await self._remove_stopped(container_id):
            pass  # it was started between its stop and its removal, which happens once

    async def _remove_stopped(self, container_id: str) -> bool:
        """Stop the container and remove it. Returns False if it runs by then."""
        await self._stops.stop_now(container_id, 0)
        async with self._state.lock(container_id):
            record = self._state.containers.get(container_id)
            if record is None:
                return True
            if can_stop(record.container):
                return False
            container, document = record.container, None
            if self._state.plugins is not None:
                document = bundle.read_config(self._state.settings.bundle_dir(container_id))
            await self._discard(container)
            if (sandbox := self._state.sandboxes.get(container.sandbox_id)) is not None:
                await self._state.happened(PluginEvent.REMOVE, sandbox.sandbox, container, document)
            _log.info("container removed", extra=log_fields.of_container(container))
            return True

    async def _discard(self, container: Container) -> None:
        if await self._forget(container):
            self._release(container)

    async def discard_unfinished(self, container: Container) -> None:
        """Remove everything of a container whose creation an earlier daemon did not finish."""
        if (record := self._state.sandboxes.get(container.sandbox_id)) is not None:
            await delete_in_shim(self._shims, container)
            await asyncio.to_thread(self._cgroups.kill_container, record.sandbox, container.id)  # of a dead shim
        await self._forget(container)
        self._release(container)

    async def _forget(self, container: Container) -> bool:
        """Remove everything of a container that does not run, but its holds on images. Its files go a little later.

        Returns whether the container was in the lists, so that of two callers only one gets True.
        """
        await delete_in_shim(self._shims, container)
        record = self._state.sandboxes.get(container.sandbox_id)
        if record is not None and record.sandbox.runtime_handler in handlers.BUILT_IN:
            await self._cgroups.of(record.sandbox).remove_container(record.sandbox, container.id)
        unmount_files(self._state, container)
        # A container without a record is gone: if crispd dies before its files are, the next one removes them.
        try:
            listed = await self._state.forget_container(container.id)
        except PodError:  # the database itself needs space, which the files may have
            await self._state.garbage.remove(self._state.settings.directories_of(container.id))
            listed = await self._state.forget_container(container.id)
        self._state.garbage.put(self._state.settings.directories_of(container.id))
        return listed

    def _release(self, container: Container) -> None:
        for image_id in container.images:
            self._images.release(image_id)


async def delete_in_shim(shims: Shims, container: Container) -> None:
    """Have the shim, if it lives, release the container. Raises RuntimeCoreError."""
    with contextlib.suppress(ShimGone):
        await shims.ask(container.sandbox_id, Delete(container.id))


async def remove_files(state: State, container: Container) -> None:
    """Remove bundle and writable layer. Call it after the shim has released them."""
    unmount_files(state, container)
    await state.garbage.remove(state.settings.directories_of(container.id))


def unmount_files(state: State, container: Container) -> None:
    """Unmount what another runtime may have left on a container's directories, and remove its own files."""
    settings = state.settings
    sandbox = state.sandboxes.get(container.sandbox_id)
    if sandbox is None or sandbox.sandbox.runtime_handler not in handlers.BUILT_IN:
        volumes = settings.container_root(container.id) / "volumes"
        handlers.clean_up(container.id, settings.bundle_dir(container.id), volumes, settings.state)
