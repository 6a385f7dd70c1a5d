"""The sandboxes and containers of a node in memory. Each change is durable before it is visible."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import msgspec

from pods.directories import Garbage
from pods.errors import FailedPrecondition, InvalidArgument, NotFound
from pods.model import Container, Sandbox, SandboxState
from pods.recorder.recorder import End, Recorder
from pods.settings import NodeSettings
from pods.state.events import Events, container_changes, sandbox_changes
from pods.state.log_counts import LogCounts
from pods.state.plugins import PluginEvent, PluginGate, Plugins, RequiredPlugins
from pods.state.store import ContainerRecord, SandboxRecord, Store
from pods.state.transitions import Event, after, has_ended, is_over, require_running

_Record = TypeVar("_Record")


class State:
    """The node's records. Only finished ones are visible to `find_*` and the listings."""

    def __init__(self, settings: NodeSettings, recorder: Recorder) -> None:
        self.settings = settings
        self.store = Store(settings.root / "crisp.db")
        self.sandboxes: dict[str, SandboxRecord] = {}
        self.containers: dict[str, ContainerRecord] = {}
        self.events = Events()
        self.recorder = recorder
        self.plugins: Plugins | None = None  # None while none is connected
        self.required: RequiredPlugins | None = None  # None if pods need no plugin
        self.gate = PluginGate()
        self.garbage = Garbage()
        self.log_counts = LogCounts()
        self.ending: set[str] = set()  # ids of containers that crispd has told to end, until they have
        self.stopping: set[str] = set()  # ids of sandboxes while they are stopped
        self._exited: dict[str, asyncio.Event] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # kept while held or awaited

    async def require_plugins(self, *, wait: bool) -> None:
        """Make sure that the plugins without which nothing is made are there. Raises Unavailable.

        Wait only outside the gate, which a plugin that connects closes.
        """
        if self.required is not None:
            await self.required.ready(wait=wait)

    async def happens(self, event: PluginEvent, sandbox: Sandbox, container: Container | None = None) -> None:
        """Tell plugins, if any. Raises PodError if one objects."""
        if self.plugins is not None:
            await self.plugins.happens(event, sandbox, container)

    async def happened(
        self,
        event: PluginEvent,
        sandbox: Sandbox,
        container: Container | None = None,
        document: dict[str, Any] | None = None,
    ) -> None:
        """Tell plugins what has already happened. `document` is the config.json of a container without a bundle."""
        if self.plugins is not None:
            await self.plugins.happened(event, sandbox, container, document)

    # -- finding ------------------------------------------------------------------------------------------------------

    def find_sandbox(self, sandbox_id: str) -> SandboxRecord:
        """Look up a sandbox by id or unique prefix. Raises NotFound, InvalidArgument."""
        return _find(self.sandboxes, sandbox_id, "pod sandbox")

    def find_container(self, container_id: str) -> ContainerRecord:
        """Look up a container by id or unique prefix. Raises NotFound, InvalidArgument."""
        return _find(self.containers, container_id, "container")

    def ready_sandbox(self, sandbox_id: str) -> Sandbox:
        """Look up a ready sandbox. Raises NotFound, InvalidArgument, and FailedPrecondition if it is not ready."""
        sandbox = self.find_sandbox(sandbox_id).sandbox
        if why := self.end_of(sandbox.id):
            raise FailedPrecondition(f"{why}: it is not ready")
        return sandbox

    def end_of(self, sandbox_id: str, container_id: str = "") -> str:
        """Return what ends or has ended the sandbox, or else the container: "pod sandbox X is being stopped".

        Returns "" if nothing has. A container whose start failed has not ended by that.
        """
        record = self.sandboxes.get(sandbox_id)
        if record is None:
            return f"pod sandbox {sandbox_id} was removed"
        if record.sandbox.state is not SandboxState.READY:
            what = "is being" if sandbox_id in self.stopping else "was" if record.stopped else ""
            return f"pod sandbox {sandbox_id} " + (f"{what} stopped" if what else "has lost its shim or infra process")
        if not container_id:
            return ""
        container = self.containers.get(container_id)
        if container is None:
            return f"container {container_id} was removed"
        if container_id in self.ending:
            return f"container {container_id} is being stopped"
        return f"container {container_id} has ended" if has_ended(container.container) else ""

    def running_container(self, container_id: str) -> Container:
        """Look up a running container. Raises NotFound, InvalidArgument, and FailedPrecondition if it does not run."""
        container = self.find_container(container_id).container
        require_running(container)
        return container

    def containers_of(self, sandbox_id: str) -> Iterator[Container]:
        return (
            record.container for record in list(self.containers.values()) if record.container.sandbox_id == sandbox_id
        )

    # -- changing -----------------------------------------------------------------------------------------------------

    async def save_sandbox(self, record: SandboxRecord, containers: Sequence[ContainerRecord] = ()) -> None:
        """Save a sandbox, and new containers that become durable and visible together with it."""
        await self.store.put(record, *containers)
        old = self.sandboxes.get(record.sandbox.id)
        self.sandboxes[record.sandbox.id] = record
        self.containers.update((one.container.id, one) for one in containers)
        self._tell_sandbox(old.sandbox if old else None, record.sandbox)
        for one in containers:
            self._tell_container(None, one.container)

    async def save_container(self, record: ContainerRecord) -> None:
        await self.store.put(record)
        old = self.containers.get(record.container.id)
        self.containers[record.container.id] = record
        self._tell_container(old.container if old else None, record.container)

    async def record(self, container_id: str, event: Event) -> None:
        """Apply an event to a container, which the caller has locked. Raises PodError.

        The change becomes visible even if it cannot be written: the shim has starts and exits on disk as well, so a new
        daemon learns of them again.
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
                self.ending.discard(container_id)
                self.exited(container_id).set()

    async def forget_sandbox(self, sandbox_id: str) -> None:
        await self.store.delete_sandbox(sandbox_id)
        if (gone := self.sandboxes.pop(sandbox_id, None)) is not None:
            self._tell_sandbox(gone.sandbox, None)
        else:
            self.recorder.undone(sandbox_id)

    async def forget_container(self, container_id: str) -> bool:
        """Delete the record. Returns whether the container was in the lists until now."""
        await self.store.delete_container(container_id)
        gone = self.containers.pop(container_id, None)
        self.ending.discard(container_id)
        if (exited := self._exited.pop(container_id, None)) is not None:
            exited.set()  # a stop may still wait for it
        if gone is not None:
            self._tell_container(gone.container, None)
        return gone is not None

    # -- telling ------------------------------------------------------------------------------------------------------

    def _tell_sandbox(self, old: Sandbox | None, new: Sandbox | None) -> None:
        """Record and publish a sandbox's change. A removed one is shown as it last was."""
        shown = new or old
        assert shown is not None
        changes = sandbox_changes(old, new)
        for kind in changes:
            self.recorder.sandbox(shown.id, shown.config.metadata, kind.name.lower())
        if self.events:
            self.events.tell(shown.id, changes, shown, tuple(self.containers_of(shown.id)))

    def _tell_container(self, old: Container | None, new: Container | None) -> None:
        shown = new or old
        assert shown is not None
        changes, name = container_changes(old, new), shown.config.metadata.name
        for kind in changes:
            self.recorder.container(shown.sandbox_id, shown.id, name, kind.name.lower(), _end(shown))
        if self.events and (record := self.sandboxes.get(shown.sandbox_id)) is not None:
            self.events.tell(shown.id, changes, record.sandbox, tuple(self.containers_of(shown.sandbox_id)))

    # -- waiting ------------------------------------------------------------------------------------------------------

    def exited(self, container_id: str) -> asyncio.Event:
        """Return the event that is set once the container's exit is durable, or the container is forgotten."""
        return self._exited.setdefault(container_id, asyncio.Event())

    def lock(self, object_id: str) -> asyncio.Lock:
        """Return the lock that serialises the changes of one sandbox or container."""
        lock = self._locks.get(object_id)
        if lock is None:
            lock = self._locks[object_id] = asyncio.Lock()
        return lock


def _end(container: Container) -> End | None:
    """How the container ended, if it has."""
    if not is_over(container):
        return None
    limit = container.resources.memory_limit_in_bytes if container.reason == "OOMKilled" else 0
    return End(container.exit_code, container.reason, f"memory limit {limit} bytes" if limit else "")


def _find(records: Mapping[str, _Record], wanted: str, kind: str) -> _Record:
    if not wanted:
        raise InvalidArgument(f"{kind} id: must not be empty")
    if (record := records.get(wanted)) is not None:
        return record
    matches = [record for object_id, record in records.items() if object_id.startswith(wanted)]
    if len(matches) > 1:
        raise InvalidArgument(f"{kind} id: {wanted!r} matches {len(matches)} ids: give more characters")
    if not matches:
        raise NotFound(f"{kind} {wanted!r} not found")
    return matches[0]
