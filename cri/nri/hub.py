"""The NRI socket: plugins connect, register, are told what there is, and from then on hear of every pod."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from google.protobuf.message import Message

from cri.errors import StartupError
from cri.nri import describe
from cri.nri.adjust import Adjustments
from cri.nri.connection import PLUGIN_CHANNEL, RUNTIME_CHANNEL, Connection
from cri.nri.errors import CallRefused, NriError, PluginGone, WireError
from cri.nri.v1alpha1 import api_pb2 as nri
from cri.premises import clear_socket
from cri.version import crisp_version
from pods.errors import PodError
from pods.plugins import Moment

if TYPE_CHECKING:
    from pods.model import Container, Sandbox
    from pods.node import Node

REGISTRATION_SECONDS: Final = 5.0  # containerd's and CRI-O's default
REQUEST_SECONDS: Final = 2.0
_PACKAGE: Final = "nri.pkg.api.v1alpha1"
_SYNCHRONIZE_BYTES: Final = 2 << 20  # of a message's 4 MiB
_UNIMPLEMENTED: Final = 12
_FAILED_PRECONDITION: Final = 9

_EVENTS: Final = {
    Moment.RUN_SANDBOX: nri.RUN_POD_SANDBOX,
    Moment.STOP_SANDBOX: nri.STOP_POD_SANDBOX,
    Moment.REMOVE_SANDBOX: nri.REMOVE_POD_SANDBOX,
    Moment.POST_CREATE: nri.POST_CREATE_CONTAINER,
    Moment.START: nri.START_CONTAINER,
    Moment.POST_START: nri.POST_START_CONTAINER,
    Moment.STOP: nri.STOP_CONTAINER,
    Moment.REMOVE: nri.REMOVE_CONTAINER,
}
# What a plugin may ask to hear of: the above, the creation, and calls that this hub does not make (yet), which do no
# harm when they are missing. To one that wants to judge others' adjustments, silence would be harm.
_REFUSED: Final = {nri.VALIDATE_CONTAINER_ADJUSTMENT}

_Answer = TypeVar("_Answer", bound=Message)

_log = logging.getLogger("crisp.nri")


@dataclass(eq=False, slots=True)
class _Plugin:
    connection: Connection
    registered: asyncio.Future[str]  # index-name
    name: str = ""
    events: int = 0

    def wants(self, event: int) -> bool:
        return bool(self.events & 1 << (event - 1))


class Hub:
    """All plugins of a node, in the order of their indices."""

    def __init__(self, node: Node, path: Path) -> None:
        self._node = node
        self._path = path
        self._plugins: list[_Plugin] = []
        self._connected: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises StartupError when something else is at the path, or it cannot be made."""
        clear_socket(self._path)
        umask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self._path)
        except OSError as error:
            raise StartupError(f"nri_socket: listen on {self._path}: {error.strerror}") from error
        finally:
            os.umask(umask)

    async def close(self) -> None:
        """Let all plugins go, and the socket."""
        self._node.plugins = None
        if self._server is not None:
            self._server.close()
        for task in self._connected:
            task.cancel()
        await asyncio.gather(*self._connected, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    # -- the seam -----------------------------------------------------------------------------------------------------

    async def happens(self, moment: Moment, sandbox: Sandbox, container: Container | None = None) -> None:
        """Tell the plugins that asked for it, one after the other. Raises PodError when one of them objects."""
        event = _EVENTS[moment]
        for plugin in self._wanting(event):
            pod = describe.pod(sandbox)
            told = describe.container(container, self._document(container)) if container else None
            with _asking(plugin, moment.value):
                answer = await self._tell(plugin, moment.value, event, pod, told)
                if getattr(answer, "update", ()):
                    _log.warning("updates of other containers are not supported", extra={"plugin": plugin.name})

    async def _tell(
        self, plugin: _Plugin, method: str, event: int, pod: nri.PodSandbox, container: nri.Container | None
    ) -> Message:
        request: Message = getattr(nri, f"{method}Request")(pod=pod)
        if container is not None:
            request.container.CopyFrom(container)  # type: ignore[attr-defined]
        try:
            return await _call(plugin, method, request, getattr(nri, f"{method}Response"))
        except CallRefused as error:
            if error.code != _UNIMPLEMENTED:
                raise
        # Plugins from before each event had a call of its own.
        change = nri.StateChangeEvent(event=event, pod=pod, container=container)  # type: ignore[arg-type]
        return await _call(plugin, "StateChange", change, nri.Empty)

    async def adjusted(self, sandbox: Sandbox, container: Container, document: dict[str, Any]) -> dict[str, Any]:
        """`document` with what the plugins want changed; each sees what those before it did. Raises PodError."""
        adjustments = Adjustments(document)
        for plugin in self._wanting(nri.CREATE_CONTAINER):
            request = nri.CreateContainerRequest(
                pod=describe.pod(sandbox), container=describe.container(container, adjustments.document)
            )
            with _asking(plugin, "CreateContainer"):
                answer = await _call(plugin, "CreateContainer", request, nri.CreateContainerResponse)
                if answer.update or answer.evict:
                    raise NriError("update, evict: crisp cannot change other containers for a plugin")
                adjustments.apply(plugin.name, answer.adjust)
        return adjustments.document

    def _wanting(self, event: int) -> list[_Plugin]:
        return [plugin for plugin in self._plugins if plugin.wants(event)]

    def _document(self, container: Container) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self._node.settings.bundle_dir(container.id) / "config.json").read_bytes())
            if isinstance(found, dict):
                return found
        return {}

    # -- a plugin's life ----------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connected.add(task)
        registered: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def serve(service: str, method: str, payload: bytes) -> Message:
            return _answered(registered, service, method, payload)

        connection = Connection(reader, writer, serve, calls_on=PLUGIN_CHANNEL, serves_on=RUNTIME_CHANNEL)
        plugin = _Plugin(connection, registered)
        reading = asyncio.create_task(connection.run())
        try:
            await self._admit(plugin)
            await reading
        except (NriError, TimeoutError) as error:
            why = str(error) or "it did not register in time"
            _log.error("plugin dropped", extra={"plugin": plugin.name, "error": why})
        finally:
            if plugin in self._plugins:
                self._plugins.remove(plugin)
                self._node.plugins = self if self._plugins else None
                _log.info("plugin gone", extra={"plugin": plugin.name})
            connection.close()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            self._connected.discard(task)

    async def _admit(self, plugin: _Plugin) -> None:
        plugin.name = await asyncio.wait_for(plugin.registered, REGISTRATION_SECONDS)
        configure = nri.ConfigureRequest(
            runtime_name="crisp",
            runtime_version=crisp_version(),
            registration_timeout=int(REGISTRATION_SECONDS * 1000),
            request_timeout=int(REQUEST_SECONDS * 1000),
            NRI_version="0.11.0",
        )
        answer = await _call(plugin, "Configure", configure, nri.ConfigureResponse, REGISTRATION_SECONDS)
        plugin.events = answer.events or (1 << nri.LAST - 1) - 1 & ~_mask(_REFUSED)
        if plugin.events & _mask(_REFUSED):
            raise NriError("Configure: crisp does not ask plugins to validate adjustments")
        async with self._node.gate.closed():
            await self._synchronize(plugin)
            self._plugins.append(plugin)
            self._plugins.sort(key=lambda one: one.name)
            self._node.plugins = self
        _log.info("plugin connected", extra={"plugin": plugin.name})

    async def _synchronize(self, plugin: _Plugin) -> None:
        pods = [describe.pod(sandbox) for sandbox in self._node.sandboxes()]
        containers = [describe.container(one, self._document(one)) for one in self._node.containers()]
        requests = list(_portions(pods, containers))
        for number, request in enumerate(requests, 1):
            request.more = number < len(requests)
            answer = await _call(plugin, "Synchronize", request, nri.SynchronizeResponse, REGISTRATION_SECONDS)
            if request.more and not answer.more:
                raise NriError("Synchronize: the plugin takes no more than one message")
            if answer.update:
                raise NriError("Synchronize: update: crisp cannot change containers for a plugin")


def _portions(pods: list[nri.PodSandbox], containers: list[nri.Container]) -> Iterator[nri.SynchronizeRequest]:
    """As many requests as it takes; one at least."""
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
    """A plugin's call. Raises CallRefused, DecodeError."""
    if (service, method) != (f"{_PACKAGE}.Runtime", "RegisterPlugin"):
        raise CallRefused(_UNIMPLEMENTED, f"{service}/{method}: not implemented by crisp")
    request = nri.RegisterPluginRequest.FromString(payload)
    index, name = request.plugin_idx, request.plugin_name
    if not name or len(index) != 2 or not index.isascii() or not index.isdecimal():
        raise NriError(f"register plugin: index {index!r}, name {name!r}: must be two digits, and a name")
    if registered.done():
        raise CallRefused(_FAILED_PRECONDITION, "register plugin: it is registered")
    registered.set_result(f"{index}-{name}")
    return nri.Empty()


def _mask(events: set[Any]) -> int:
    return sum(1 << event - 1 for event in events)


async def _call(
    plugin: _Plugin, method: str, request: Message, answer: type[_Answer], seconds: float = REQUEST_SECONDS
) -> _Answer:
    try:
        return await plugin.connection.call(f"{_PACKAGE}.Plugin", method, request, answer, seconds)
    except PluginGone:
        plugin.connection.close()  # one that hangs must not hold up each pod again
        raise


@contextlib.contextmanager
def _asking(plugin: _Plugin, method: str) -> Iterator[None]:
    """A plugin that is gone has no say; one that objects fails the operation (PodError)."""
    try:
        yield
    except PluginGone as error:
        _log.error("plugin dropped", extra={"plugin": plugin.name, "error": error})
    except WireError as error:  # what it would be told is too long for NRI
        _log.error("plugin not told", extra={"plugin": plugin.name, "call": method, "error": error})
    except NriError as error:
        raise PodError(f"NRI plugin {plugin.name}: {method}: {error}") from error
