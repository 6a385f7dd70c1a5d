"""The NRI server: plugins connect, register, get a list of existing pods, and then hear of every pod."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import Message

from cri.errors import StartupError
from cri.nri import describe
from cri.nri.adjust import Adjustments
from cri.nri.apart import Apart
from cri.nri.connection import PLUGIN_CHANNEL, RUNTIME_CHANNEL, TtrpcConnection
from cri.nri.errors import CallRefused, NriError
from cri.nri.plugin import PACKAGE, UNIMPLEMENTED, Plugin, asking
from cri.nri.resources import Updates, resources_message
from cri.nri.v1alpha1 import api_pb2 as nri
from cri.plugin_policy import WAIT, PluginPolicy
from cri.sockets import SocketPath
from cri.version import crisp_version
from pods import bundle, log_fields
from pods.errors import PodError, Unavailable
from pods.oci.cdi import add_edits, find_edits
from pods.state.plugins import PluginEvent

if TYPE_CHECKING:
    from pods.model import Container, Resources, Sandbox
    from pods.node import Node

REGISTRATION_SECONDS: Final = 5.0  # containerd's and CRI-O's default
_SYNCHRONIZE_BYTES: Final = 2 << 20  # below a message's 4 MiB
_VALIDATE: Final = "ValidateContainerAdjustment"
_FAILED_PRECONDITION: Final = 9

_EVENTS: Final = {
    PluginEvent.RUN_SANDBOX: nri.RUN_POD_SANDBOX,
    PluginEvent.POST_UPDATE_SANDBOX: nri.POST_UPDATE_POD_SANDBOX,
    PluginEvent.STOP_SANDBOX: nri.STOP_POD_SANDBOX,
    PluginEvent.REMOVE_SANDBOX: nri.REMOVE_POD_SANDBOX,
    PluginEvent.POST_CREATE: nri.POST_CREATE_CONTAINER,
    PluginEvent.START: nri.START_CONTAINER,
    PluginEvent.POST_START: nri.POST_START_CONTAINER,
    PluginEvent.POST_UPDATE: nri.POST_UPDATE_CONTAINER,
    PluginEvent.STOP: nri.STOP_CONTAINER,
    PluginEvent.REMOVE: nri.REMOVE_CONTAINER,
}
_REMOVALS: Final = (PluginEvent.REMOVE_SANDBOX, PluginEvent.REMOVE)
_EVERYTHING: Final = (1 << nri.LAST - 1) - 1  # for a plugin that subscribes to nothing in particular

_log = logging.getLogger("crisp.nri")


@dataclass(slots=True)
class _Notification:
    """An event for plugins, and its description once one needs it."""

    event: PluginEvent
    sandbox: Sandbox
    container: Container | None = None
    document: dict[str, Any] | None = None  # the config.json of a container without a bundle
    described: tuple[nri.PodSandbox, nri.Container | None] | None = None


class Hub:
    """All plugins of a node, ordered by index."""

    def __init__(self, node: Node, path: Path, policies: Mapping[str, PluginPolicy]) -> None:
        """`policies` are by the plugins' names, without index."""
        self._node = node
        self._policies = policies
        self._changed = asyncio.Event()  # a plugin has connected
        self._socket = SocketPath(path)
        self._plugins: list[Plugin] = []
        self._apart = Apart()
        self._connected: set[asyncio.Task[None]] = set()
        self._working: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises StartupError if the path is in use, or the socket cannot be made."""
        if any(policy.required for policy in self._policies.values()):
            self._node.required_plugins = self
        self._node.plugins_apart = self._apart.now
        path = self._socket.path
        try:
            self._socket.clear()
        except OSError as error:
            raise StartupError(f"nri_socket: remove the old socket {path}: {error.strerror}") from error
        try:
            with self._socket.making():
                self._server = await asyncio.start_unix_server(self._serve, path)
        except OSError as error:
            raise StartupError(f"nri_socket: listen on {path}: {error.strerror}") from error

    async def close(self) -> None:
        """Disconnect all plugins and remove the socket."""
        self._node.required_plugins = None
        self._node.plugins_apart = None
        self._node.plugins = None
        if self._server is not None:
            self._server.close()
            self._socket.remove()
        for task in self._connected:
            task.cancel()
        await asyncio.gather(*self._connected, *self._working, return_exceptions=True)

    # -- plugins that pods need ----------------------------------------------------------------------------------------

    def missing(self) -> list[str]:
        there = {plugin.name[3:] for plugin in self._plugins}
        return sorted(name for name, policy in self._policies.items() if policy.required and name not in there)

    async def ready(self, *, wait: bool) -> None:
        begun = asyncio.get_running_loop().time()
        while missing := self.missing():
            patience = min(self._patience(name, wait) for name in missing)
            left = begun + patience - asyncio.get_running_loop().time()
            self._changed.clear()
            if left > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), left)
            elif missing := self.missing():
                waited = f" after {patience} s" if patience else ""
                raise Unavailable(
                    f"NRI plugins that pods need are not connected{waited}: {', '.join(missing)}: start them, or "
                    "remove them from nri_plugins"
                )

    def _patience(self, name: str, wait: bool) -> int:
        policy = self._policies[name]
        return policy.wait_seconds if wait and policy.failure == WAIT else 0

    # -- the seam -----------------------------------------------------------------------------------------------------

    async def happens(self, event: PluginEvent, sandbox: Sandbox, container: Container | None = None) -> None:
        """Tell subscribed plugins, one after the other. Raises PodError if one objects."""
        note = _Notification(event, sandbox, container)
        for plugin in self._hearing(note):
            await self._tell(plugin, note)

    async def happened(
        self,
        event: PluginEvent,
        sandbox: Sandbox,
        container: Container | None = None,
        document: dict[str, Any] | None = None,
    ) -> None:
        """Tell subscribed plugins. An objection is logged and ignored."""
        note = _Notification(event, sandbox, container, document)
        for plugin in self._hearing(note):
            await self._tell_past(plugin, note)

    async def _tell_past(self, plugin: Plugin, note: _Notification) -> None:
        try:
            await self._tell(plugin, note)
        except PodError as error:
            of = note.container
            fields = log_fields.of_container(of) if of is not None else log_fields.of_sandbox(note.sandbox)
            _log.error("plugin objected to an event that cannot be undone", extra=fields | {"error": error})

    def _hearing(self, note: _Notification) -> Iterator[Plugin]:
        """Yield the plugins to tell, in turn. A plugin then knows a new pod, and no longer knows a removed one."""
        of = (note.container or note.sandbox).id
        for plugin in list(self._plugins):
            if note.event is PluginEvent.RUN_SANDBOX:
                plugin.known.add(of)
            elif of not in plugin.known:
                continue
            if note.event in _REMOVALS:
                plugin.known.discard(of)
            if plugin.wants(_EVENTS[note.event]):
                yield plugin

    async def _tell(self, plugin: Plugin, note: _Notification) -> None:
        method = note.event.value
        if note.described is None:
            note.described = self._described(note)
        with asking(plugin, method):
            answer = await self._call(plugin, method, _EVENTS[note.event], *note.described)
            if isinstance(answer, nri.StopContainerResponse) and answer.update:
                updates = Updates()
                updates.add(plugin.name, list(answer.update), [])
                self._start(self._apply_later(plugin, updates))  # later: the container's lock is held now

    def _described(self, note: _Notification) -> tuple[nri.PodSandbox, nri.Container | None]:
        pod, container = describe.pod(note.sandbox), note.container
        if container is None:
            return pod, None
        document = self._document(container) if note.document is None else note.document
        return pod, describe.container(container, document)

    async def _call(
        self, plugin: Plugin, method: str, event: int, pod: nri.PodSandbox, container: nri.Container | None
    ) -> Message:
        request: Message = getattr(nri, f"{method}Request")(pod=pod)
        if container is not None:
            request.container.CopyFrom(container)  # type: ignore[attr-defined]
        try:
            return await plugin.call(method, request, getattr(nri, f"{method}Response"))
        except CallRefused as error:
            if error.code != UNIMPLEMENTED:
                raise
        # An older plugin has one call for all events.
        change = nri.StateChangeEvent(event=event, pod=pod, container=container)  # type: ignore[arg-type]
        return await plugin.call("StateChange", change, nri.Empty)

    async def adjusted(self, sandbox: Sandbox, container: Container, document: dict[str, Any]) -> dict[str, Any]:
        """Return `document` with the plugins' changes; each plugin sees those of earlier ones. Raises PodError."""
        adjustments, updates = Adjustments(document), Updates()
        pod = describe.pod(sandbox)
        for plugin in list(self._plugins):
            plugin.known.add(container.id)
            if not plugin.wants(nri.CREATE_CONTAINER):
                continue
            request = nri.CreateContainerRequest(
                pod=pod, container=describe.container(container, adjustments.document)
            )
            with asking(plugin, "CreateContainer"):
                answer = await plugin.call("CreateContainer", request, nri.CreateContainerResponse)
                adjustments.apply(plugin.name, answer.adjust)
                updates.add(plugin.name, list(answer.update), list(answer.evict))
        if devices := {device.name: "NRI: adjust.CDI_devices" for device in adjustments.asked.CDI_devices}:
            edits = await asyncio.to_thread(find_edits, devices, self._node.settings.cdi_spec_dirs)
            add_edits(adjustments.document, edits)
        await self._judged(pod, container, document, adjustments, updates)
        await self._apply(updates)
        return adjustments.document

    async def _judged(
        self,
        pod: nri.PodSandbox,
        container: Container,
        document: dict[str, Any],
        adjustments: Adjustments,
        updates: Updates,
    ) -> None:
        """Show validating plugins the result of all plugins. Raises PodError if one rejects it."""
        if not (judges := self._wanting(nri.VALIDATE_CONTAINER_ADJUSTMENT)):
            return
        request = nri.ValidateContainerAdjustmentRequest(
            pod=pod,
            container=describe.container(container, document),
            adjust=adjustments.asked,
            update=updates.messages(),
            plugins=[nri.PluginInstance(index=one.name[:2], name=one.name[3:]) for one in self._plugins],
        )
        request.owners.owners[container.id].CopyFrom(adjustments.owners.described())
        for plugin in judges:
            with asking(plugin, _VALIDATE):
                try:
                    answer = await plugin.call(_VALIDATE, request, nri.ValidateContainerAdjustmentResponse)
                except CallRefused as error:
                    if error.code != UNIMPLEMENTED:
                        raise
                else:
                    if answer.reject:
                        raise NriError(f"rejected: {answer.reason or 'no reason given'}")

    async def updated(self, sandbox: Sandbox, container: Container, wanted: Resources) -> Resources:
        """Return `wanted` with the plugins' changes. Raises PodError."""
        updates = Updates()
        described = describe.container(container, self._document(container))
        for plugin in self._wanting(nri.UPDATE_CONTAINER):
            request = nri.UpdateContainerRequest(
                pod=describe.pod(sandbox), container=described, linux_resources=resources_message(wanted)
            )
            with asking(plugin, "UpdateContainer"):
                answer = await plugin.call("UpdateContainer", request, nri.UpdateContainerResponse)
                updates.add(plugin.name, list(answer.update), list(answer.evict))
        wanted = updates.take(container.id, wanted)
        await self._apply(updates)
        return wanted

    async def sandbox_updates(self, sandbox: Sandbox, overhead: Resources | None, resources: Resources | None) -> None:
        """Tell subscribed plugins a pod's new totals. Raises PodError if one objects."""
        for plugin in self._wanting(nri.UPDATE_POD_SANDBOX):
            request = nri.UpdatePodSandboxRequest(
                pod=describe.pod(sandbox),
                overhead_linux_resources=resources_message(overhead) if overhead else None,
                linux_resources=resources_message(resources) if resources else None,
            )
            with asking(plugin, "UpdatePodSandbox"):
                try:
                    await plugin.call("UpdatePodSandbox", request, nri.UpdatePodSandboxResponse)
                except CallRefused as error:
                    if error.code != UNIMPLEMENTED:
                        raise

    # -- what plugins want of containers that are there --------------------------------------------------------------

    async def _apply(self, updates: Updates) -> None:
        """Apply plugins' changes to other containers. Raises PodError for a failure that must not be ignored."""
        for container, limits, ignore_failure in updates.others():
            try:
                await self._node.update_container_for_plugin(container, limits)
            except PodError as error:
                if not ignore_failure:
                    raise
                _log.warning("could not update container for a plugin", extra={"container": container, "error": error})
        for container, why in updates.evictions().items():
            _log.warning("container evicted by a plugin", extra={"container": container, "reason": why})
            self._start(self._evict(container))

    async def _evict(self, container: str) -> None:
        """Evict a container. Runs as a task of its own, because the calling operation may hold the container's lock."""
        try:
            await self._node.stop_container(container, 0)
        except PodError as error:
            _log.error("could not evict container", extra={"container": container, "error": error})

    async def _apply_later(self, plugin: Plugin, updates: Updates) -> None:
        try:
            await self._apply(updates)
        except PodError as error:
            _log.error("could not update container for a plugin", extra={"plugin": plugin.name, "error": error})

    async def _update_unasked(
        self, plugin: Plugin, request: nri.UpdateContainersRequest
    ) -> nri.UpdateContainersResponse:
        """Handle a plugin's own UpdateContainers. Answers the failed updates that must not be ignored."""
        if plugin not in self._plugins:
            raise CallRefused(_FAILED_PRECONDITION, "update containers: the plugin is not registered")
        answer = nri.UpdateContainersResponse()
        for update in request.update:
            one = Updates()
            try:
                one.add(plugin.name, [update], [])
                await self._apply(one)
            except (NriError, PodError) as error:
                _log.warning("could not update container for a plugin", extra={"plugin": plugin.name, "error": error})
                answer.failed.append(update)
        evictions = Updates()
        evictions.add(plugin.name, [], list(request.evict))
        await self._apply(evictions)
        return answer

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    def _wanting(self, event: int) -> list[Plugin]:
        return [plugin for plugin in self._plugins if plugin.wants(event)]

    def _document(self, container: Container) -> dict[str, Any]:
        return bundle.read_config(self._node.settings.bundle_dir(container.id)) or {}

    # -- a plugin's life ----------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connected.add(task)
        registered: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def serve(service: str, method: str, payload: bytes) -> Message:
            if (service, method) == (f"{PACKAGE}.Runtime", "UpdateContainers"):
                return await self._update_unasked(plugin, nri.UpdateContainersRequest.FromString(payload))
            return _answered(registered, service, method, payload)

        connection = TtrpcConnection(reader, writer, serve, calls_on=PLUGIN_CHANNEL, serves_on=RUNTIME_CHANNEL)
        plugin = Plugin(connection, registered, apart=self._apart)
        reading = asyncio.create_task(connection.run())
        try:
            if await _registers(plugin, reading) and await self._may_be_asked(plugin, reading):
                await self._admit(plugin)
            await reading
        except asyncio.CancelledError:
            pass  # by `close`, which waits for this; otherwise asyncio logs a traceback
        except (NriError, TimeoutError) as error:
            why = str(error) or "did not register in time"
            _log.error("plugin disconnected after an error", extra={"plugin": plugin.name, "error": why})
        finally:
            if plugin in self._plugins:
                self._plugins.remove(plugin)
                self._node.plugins = self if self._plugins else None
                _log.info("plugin disconnected", extra={"plugin": plugin.name})
            connection.close()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            self._connected.discard(task)

    async def _may_be_asked(self, plugin: Plugin, reading: asyncio.Task[None]) -> bool:
        """Wait until the plugin is no longer set apart. Returns False if it leaves before."""
        plugin.name = plugin.registered.result()
        plugin.policy = self._policies.get(plugin.name[3:], PluginPolicy())
        while (left := self._apart.left(plugin.name)) and not reading.done():
            fields = {"plugin": plugin.name, "seconds": round(left)}
            _log.warning("plugin that is set apart has connected; it is asked when its time is over", extra=fields)
            await asyncio.wait({reading}, timeout=left)
        return not reading.done()

    async def _admit(self, plugin: Plugin) -> None:
        configure = nri.ConfigureRequest(
            runtime_name="crisp",
            runtime_version=crisp_version(),
            registration_timeout=int(REGISTRATION_SECONDS * 1000),
            request_timeout=plugin.policy.seconds * 1000,
            NRI_version="0.11.0",
        )
        answer = await plugin.call("Configure", configure, nri.ConfigureResponse, REGISTRATION_SECONDS)
        plugin.events = answer.events or _EVERYTHING
        async with self._node.gate.closed():
            sandboxes, containers = self._node.sandboxes(), self._node.containers()
            plugin.known |= _ids(sandboxes, containers)
            await self._synchronize(plugin, sandboxes, containers)
            self._plugins.append(plugin)
            self._plugins.sort(key=lambda one: one.name)
            self._node.plugins = self
            self._changed.set()
            await self._tell_of_removed(plugin, sandboxes, containers)
        _log.info("plugin connected", extra={"plugin": plugin.name})

    async def _tell_of_removed(
        self, plugin: Plugin, sandboxes: Sequence[Sandbox], containers: Sequence[Container]
    ) -> None:
        """Tell a new plugin of removals since its initial list: removals do not wait for a new plugin."""
        gone = plugin.known - _ids(self._node.sandboxes(), self._node.containers())
        plugin.known -= gone
        pods = {sandbox.id: sandbox for sandbox in sandboxes}
        for container in containers:
            if container.id in gone and container.sandbox_id in pods and plugin.wants(nri.REMOVE_CONTAINER):
                await self._tell_past(plugin, _Notification(PluginEvent.REMOVE, pods[container.sandbox_id], container))
        for sandbox in sandboxes:
            if sandbox.id in gone and plugin.wants(nri.REMOVE_POD_SANDBOX):
                await self._tell_past(plugin, _Notification(PluginEvent.REMOVE_SANDBOX, sandbox))

    async def _synchronize(
        self, plugin: Plugin, sandboxes: Sequence[Sandbox], found: Sequence[Container]
    ) -> None:
        pods = [describe.pod(sandbox) for sandbox in sandboxes]
        containers = [describe.container(one, self._document(one)) for one in found]
        requests = list(_portions(pods, containers))
        for number, request in enumerate(requests, 1):
            request.more = number < len(requests)
            answer = await plugin.call("Synchronize", request, nri.SynchronizeResponse, REGISTRATION_SECONDS)
            if request.more and not answer.more:
                raise NriError("Synchronize: the plugin accepts only one message, and the list needs more")
            updates = Updates()
            updates.add(plugin.name, list(answer.update), [])
            await self._apply_later(plugin, updates)


async def _registers(plugin: Plugin, reading: asyncio.Task[None]) -> bool:
    """Return whether it registers; a client that leaves at once only probed the socket. Raises TimeoutError."""
    await asyncio.wait((plugin.registered, reading), timeout=REGISTRATION_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    if not plugin.registered.done() and not reading.done():
        raise TimeoutError
    if not plugin.registered.done():
        _log.debug("a client left without registering")
    return plugin.registered.done()


def _ids(sandboxes: Sequence[Sandbox], containers: Sequence[Container]) -> set[str]:
    return {sandbox.id for sandbox in sandboxes} | {container.id for container in containers}


def _portions(pods: list[nri.PodSandbox], containers: list[nri.Container]) -> Iterator[nri.SynchronizeRequest]:
    """Split the list into as many requests as needed, at least one."""
    request, size = nri.SynchronizeRequest(), 0
    items: list[nri.PodSandbox | nri.Container] = [*pods, *containers]
    for item in items:
        if size + item.ByteSize() > _SYNCHRONIZE_BYTES and size:
            yield request
            request, size = nri.SynchronizeRequest(), 0
        size += item.ByteSize()
        if isinstance(item, nri.PodSandbox):
            request.pods.append(item)
        else:
            request.containers.append(item)
    yield request


def _answered(registered: asyncio.Future[str], service: str, method: str, payload: bytes) -> Message:
    """Answer a plugin's call. Raises CallRefused, DecodeError."""
    if (service, method) != (f"{PACKAGE}.Runtime", "RegisterPlugin"):
        raise CallRefused(UNIMPLEMENTED, f"{service}/{method}: not implemented by crisp")
    request = nri.RegisterPluginRequest.FromString(payload)
    index, name = request.plugin_idx, request.plugin_name
    if not name or len(index) != 2 or not index.isascii() or not index.isdecimal():
        raise NriError(f"register plugin: index {index!r}, name {name!r}: must be two digits and a name")
    if registered.done():
        raise CallRefused(_FAILED_PRECONDITION, "register plugin: already registered")
    registered.set_result(f"{index}-{name}")
    return nri.Empty()
