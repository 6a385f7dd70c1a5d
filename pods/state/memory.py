"""The sandboxes and containers of a node in memory, each change durable before it is visible."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import msgspec

from pods.errors import FailedPrecondition, InvalidArgument, NotFound
from pods.model import Container, Sandbox, SandboxState
from pods.settings import NodeSettings
from pods.state.events import Events, container_changes, sandbox_changes
from pods.state.plugins import Moment, PluginGate, Plugins
from pods.state.store import ContainerRecord, SandboxRecord, Store
from pods.state.transitions import Event, after, is_over, require_running

_Record = TypeVar("_Record")


class State:
    """Finished records only are visible to `find_*` and the listings."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.store = Store(settings.root / "crisp.db")
        self.sandboxes: dict[str, SandboxRecord] = {}
        self.containers: dict[str, ContainerRecord] = {}
        self.events = Events()
        self.plugins: Plugins | None = None  # None as long as none is connected
        self.gate = PluginGate()
        self._exited: dict[str, asyncio.Event] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # while anybody holds or awaits one

    async def happens(self, moment: Moment, sandbox: Sandbox, container: Container | None = None) -> None:
        """Tell plugins, if there are any. Raises PodError when one objects."""
        if self.plugins is not None:
            await self.plugins.happens(moment, sandbox, container)

    async def happened(
        self,
        moment: Moment,
        sandbox: Sandbox,
        container: Container | None = None,
        document: dict[str, Any] | None = None,
    ) -> None:
        """Tell plugins what has already happened. `document` is the config.json of a container without bundle."""
        if self.plugins is not None:
            await self.plugins.happened(moment, sandbox, container, document)

    # -- finding ------------------------------------------------------------------------------------------------------

    def find_sandbox(self, sandbox_id: str) -> SandboxRecord:
        """By id or unique prefix. Raises NotFound, InvalidArgument."""
        return _find(self.sandboxes, sandbox_id, "pod sandbox")

    def find_container(self, container_id: str) -> ContainerRecord:
        """By id or unique prefix. Raises NotFound, InvalidArgument."""
        return _find(self.containers, container_id, "container")

    def ready_sandbox(self, sandbox_id: str) -> Sandbox:
        """By id or unique prefix. Raises NotFound, InvalidArgument, and FailedPrecondition unless it is ready."""
        sandbox = self.find_sandbox(sandbox_id).sandbox
        if sandbox.state is not SandboxState.READY:
            raise FailedPrecondition(f"pod sandbox {sandbox.id} is not ready")
        return sandbox

    def running_container(self, container_id: str) -> Container:
        """By id or unique prefix. Raises NotFound, InvalidArgument, and FailedPrecondition unless it runs."""
        container = self.find_container(container_id).container
        require_running(container)
        return container

    def containers_of(self, sandbox_id: str) -> Iterator[Container]:
        return (
            record.container for record in list(self.containers.values()) if record.container.sandbox_id == sandbox_id
        )

    # -- changing -----------------------------------------------------------------------------------------------------

    async def save_sandbox(self, record: SandboxRecord) -> None:
        await self.store.put(record)
        old = self.sandboxes.get(record.sandbox.id)
        self.sandboxes[record.sandbox.id] = record
        self._tell_sandbox(old.sandbox if old else None, record.sandbox)

    async def save_container(self, record: ContainerRecord) -> None:
        await self.store.put(record)
        old = self.containers.get(record.container.id)
        self.containers[record.container.id] = record
        self._tell_container(old.container if old else None, record.container)

    async def record(self, container_id: str, event: Event) -> None:
        """Make known what has happened to a container, which the caller has locked. Raises PodError.

        Visible even if the disk does not take it. A shim keeps starts and exits too, so a daemon that starts anew
        learns of them again.
        """
        record = self.containers[container_id]
        before = record.container
        container = after(before, event)
        record = msgspec.structs.replace(record, container=container)
        try:
            await self.store.put(record)
        finally:
            self.containers[container_id] = record
            self._tell_container(before, container)
            if is_over(container):
                self.exited(container_id).set()

    async def forget_sandbox(self, sandbox_id: str) -> None:
        await self.store.delete_sandbox(sandbox_id)
        if (gone := self.sandboxes.pop(sandbox_id, None)) is not None:
            self._tell_sandbox(gone.sandbox, None)

    async def forget_container(self, container_id: str) -> None:
        await self.store.delete_container(container_id)
        gone = self.containers.pop(container_id, None)
        if (exited := self._exited.pop(container_id, None)) is not None:
            exited.set()  # a stop may wait for it still
        if gone is not None:
            self._tell_container(gone.container, None)

    # -- telling ------------------------------------------------------------------------------------------------------

    def _tell_sandbox(self, old: Sandbox | None, new: Sandbox | None) -> None:
        """One that is gone is told as it last was."""
        told = new or old
        if self.events and told is not None:
            self.events.tell(told.id, sandbox_changes(old, new), told, tuple(self.containers_of(told.id)))

    def _tell_container(self, old: Container | None, new: Container | None) -> None:
        told = new or old
        if self.events and told is not None and (record := self.sandboxes.get(told.sandbox_id)) is not None:
            inside = tuple(self.containers_of(told.sandbox_id))
            self.events.tell(told.id, container_changes(old, new), record.sandbox, inside)

    # -- waiting ------------------------------------------------------------------------------------------------------

    def exited(self, container_id: str) -> asyncio.Event:
        """Set once the container's exit is durable, or the container is forgotten."""
        return self._exited.setdefault(container_id, asyncio.Event())

    def lock(self, object_id: str) -> asyncio.Lock:
        """Serialises the changes of one sandbox or container."""
        lock = self._locks.get(object_id)
        if lock is None:
            lock = self._locks[object_id] = asyncio.Lock()
        return lock


def _find(records: Mapping[str, _Record], wanted: str, kind: str) -> _Record:
    if not wanted:
        raise InvalidArgument(f"{kind} id: must not be empty")
    if (record := records.get(wanted)) is not None:
        return record
    matches = [record for object_id, record in records.items() if object_id.startswith(wanted)]
    if len(matches) > 1:
        raise InvalidArgument(f"{kind} id: {wanted!r} is the beginning of {len(matches)} ids")
    if not matches:
        raise NotFound(f"{kind} {wanted!r} not found")
    return matches[0]
