"""RemoveContainer, and the removal of containers that an earlier daemon left unfinished."""

from __future__ import annotations

import contextlib
import logging
import shutil
from typing import TYPE_CHECKING

from pods import bundle, handlers, log_fields
from pods.directories import remove_trees
from pods.errors import NotFound
from pods.model import Container
from pods.state.plugins import PluginEvent
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
        await self._stops.stop_now(container_id, 0)
        async with self._state.lock(container_id):
            record = self._state.containers.get(container_id)
            if record is None:
                return
            container, document = record.container, None
            if self._state.plugins is not None:
                document = bundle.read_config(self._state.settings.bundle_dir(container_id))
            await self.discard(container)
            if (sandbox := self._state.sandboxes.get(container.sandbox_id)) is not None:
                await self._state.happened(PluginEvent.REMOVE, sandbox.sandbox, container, document)
            _log.info("container removed", extra=log_fields.of_container(container))

    async def discard(self, container: Container) -> None:
        """Remove everything of a container that does not run."""
        await delete_in_shim(self._shims, container)
        record = self._state.sandboxes.get(container.sandbox_id)
        if record is not None and record.sandbox.runtime_handler in handlers.BUILT_IN:
            await self._cgroups.of(record.sandbox).remove_container(record.sandbox, container.id)
        await remove_files(self._state, container)
        await self._state.forget_container(container.id)
        for image_id in container.images:
            self._images.release(image_id)


async def delete_in_shim(shims: Shims, container: Container) -> None:
    """Have the shim, if it lives, release the container. Raises RuntimeCoreError."""
    with contextlib.suppress(ShimGone):
        await shims.of(container.sandbox_id).call(Delete(container.id))


async def remove_files(state: State, container: Container) -> None:
    """Remove bundle and writable layer. Call it after the shim has released them."""
    settings = state.settings
    directory, root = settings.bundle_dir(container.id), settings.container_root(container.id)
    sandbox = state.sandboxes.get(container.sandbox_id)
    if sandbox is None or sandbox.sandbox.runtime_handler not in handlers.BUILT_IN:
        handlers.clean_up(container.id, directory, root / "volumes", settings.state)
    shutil.rmtree(directory, ignore_errors=True)
    await remove_trees([root])
