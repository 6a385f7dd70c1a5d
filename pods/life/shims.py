"""The node's shims: forks them, connects again after a restart, passes on their events, and ends them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from linux.mounts import unmount_if_mounted, unpin_namespace
from pods import pod_files
from pods.cgroups.driver import Cgroups
from pods.settings import NodeSettings
from runtime.cgroups import SHIM_CGROUP
from runtime.client import ShimClient, ShimGone, Zygote
from runtime.errors import failing
from runtime.wire.calls import Event, Exited, ExitStatus, InfraExited, Made, MakePod, Shutdown

_log = logging.getLogger("crisp.pods")

ExitHandler = Callable[[str, ExitStatus], None]  # container id
LossHandler = Callable[[str], None]  # sandbox id


class Shims:
    """Connections to shims by sandbox id. `on_exit` and `on_loss` are called on the event loop."""

    def __init__(
        self, settings: NodeSettings, cgroups: Cgroups, on_exit: ExitHandler, on_loss: LossHandler
    ) -> None:
        self._settings = settings
        self._cgroups = cgroups
        self._zygote = Zygote(cgroups.driver.place_shims)
        self._clients: dict[str, ShimClient] = {}
        self.idmap_refusal = "not asked yet"  # why pods cannot have user namespaces; "" if they can
        self._on_exit = on_exit
        self._on_loss = on_loss

    def __len__(self) -> int:
        return len(self._clients)

    async def start(self) -> None:
        """Start the zygote, and test whether image layers can be id-mapped. Raises RuntimeCoreError, PodError."""
        await self._zygote.start()
        directory = self._settings.root / "image"
        self.idmap_refusal = await asyncio.to_thread(self._zygote.probe_idmap, directory)

    async def make_pod(self, call: MakePod) -> Made:
        """Fork a shim and have it make the pod's kernel objects. Raises RuntimeCoreError after undoing them."""
        generation = self._zygote.generation
        try:
            return await (await self._fork(call.sandbox)).call(call)
        except ShimGone:
            # A dying zygote loses the requests that it has accepted, and may accept some more.
            await self._zygote.replace(generation)
            return await (await self._fork(call.sandbox)).call(call)

    async def _fork(self, sandbox_id: str) -> ShimClient:
        client = await self._zygote.spawn(*self._handlers(sandbox_id))
        self._clients[sandbox_id] = client
        return client

    async def find(self, sandbox_id: str) -> ShimClient:
        """Connect to the living shim of an earlier daemon's sandbox. Raises ShimGone."""
        client = await ShimClient.connect(self._settings.sandbox_dir(sandbox_id), *self._handlers(sandbox_id))
        self._clients[sandbox_id] = client
        return client

    def of(self, sandbox_id: str) -> ShimClient:
        """Return the connected shim. Raises ShimGone."""
        client = self._clients.get(sandbox_id)
        if client is None or not client.alive:
            raise ShimGone(f"the shim of pod sandbox {sandbox_id} is gone")
        return client

    async def end(self, sandbox_id: str) -> None:
        """Shut the shim down and unmount what it left on the host. Raises RuntimeCoreError."""
        client = self._clients.get(sandbox_id)
        if client is not None and client.alive:
            try:
                await client.call(Shutdown())
            except ShimGone:
                _log.warning("shim died while it shut down", extra={"sandbox": sandbox_id})
            client.close()
        self._clients.pop(sandbox_id, None)
        directory = self._settings.sandbox_dir(sandbox_id)
        unmount_if_mounted(str(directory / "shm"))
        pod_files.unmount(directory)

    def unpin(self, path: str | Path) -> None:
        """Unmount a pod's network namespace. Raises RuntimeCoreError."""
        with failing("unpin network namespace", str(path)):
            unpin_namespace(str(path))

    def close(self) -> None:
        """Disconnect; the shims run on."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._zygote.close()
        self._cgroups.remove_unused(SHIM_CGROUP)  # stays while any shim, of this or another daemon, is in it

    def _handlers(self, sandbox_id: str) -> tuple[Callable[[Event], None], Callable[[], None]]:
        def on_event(event: Event) -> None:
            if isinstance(event, Exited):
                self._on_exit(event.container, event.exit)
            elif isinstance(event, InfraExited) and sandbox_id in self._clients:
                self._on_loss(sandbox_id)

        def on_lost() -> None:
            if self._clients.pop(sandbox_id, None) is not None:
                self._on_loss(sandbox_id)

        return on_event, on_lost
