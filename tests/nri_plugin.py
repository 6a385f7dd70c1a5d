"""An NRI plugin for tests, on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from google.protobuf.message import Message

from cri.nri.connection import PLUGIN_CHANNEL, RUNTIME_CHANNEL, TtrpcConnection
from cri.nri.errors import CallRefused
from cri.nri.v1alpha1 import api_pb2 as nri

_SECONDS = 60.0
HANG = "hang"  # an answer that never comes


class Plugin:
    """Keeps the calls that it gets; answers those in `answers`, others emptily.

    An answer is a message, an exception, HANG, or an event: then the answer, an empty one, comes when it is set.
    """

    def __init__(self, name: str, index: str = "10") -> None:
        self.name, self.index = name, index
        self.calls: list[tuple[str, Any]] = []
        self.answers: dict[str, Message | Exception | threading.Event | str] = {}
        self.registered = threading.Event()
        self.closed = threading.Event()
        self._connection: TtrpcConnection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    @contextmanager
    def connected(
        cls, path: Path, name: str = "test", index: str = "10", *, apart: bool = False, **answers: Any
    ) -> Iterator[Self]:
        """One that is registered and has been told what there is; not yet told, if it is set `apart`."""
        plugin = cls(name, index)
        plugin.answers.update(answers)
        plugin._loop = loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            running = asyncio.run_coroutine_threadsafe(plugin._run(path), loop)
            plugin.wait(lambda: running.done() or (plugin.registered.is_set() if apart else plugin.knows_all()))
            yield plugin
        finally:
            asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result(_SECONDS)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def _run(self, path: Path) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        self._connection = connection = TtrpcConnection(
            reader, writer, self._serve, calls_on=RUNTIME_CHANNEL, serves_on=PLUGIN_CHANNEL
        )
        reading = asyncio.create_task(connection.run())
        try:
            registration = nri.RegisterPluginRequest(plugin_name=self.name, plugin_idx=self.index)
            await connection.call("nri.pkg.api.v1alpha1.Runtime", "RegisterPlugin", registration, nri.Empty, _SECONDS)
            self.registered.set()
            await reading
        finally:
            self.closed.set()
            connection.close()

    async def _serve(self, service: str, method: str, payload: bytes) -> Message:
        assert service == "nri.pkg.api.v1alpha1.Plugin"
        request = getattr(nri, f"{method}Request").FromString(payload)
        self.calls.append((method, request))
        answer = self.answers.get(method)
        if answer == HANG:
            await asyncio.Event().wait()
        if isinstance(answer, threading.Event):
            await asyncio.to_thread(answer.wait)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Message):
            return answer
        response: Message = getattr(nri, f"{method}Response")()
        if method == "Synchronize":
            response.more = request.more  # type: ignore[attr-defined]
        return response

    def update(self, *updates: nri.ContainerUpdate, evict: tuple[str, ...] = ()) -> nri.UpdateContainersResponse:
        """Ask the runtime to change containers."""
        assert self._connection is not None
        assert self._loop is not None
        evictions = [nri.ContainerEviction(container_id=one, reason="test") for one in evict]
        request = nri.UpdateContainersRequest(update=updates, evict=evictions)
        service = "nri.pkg.api.v1alpha1.Runtime"
        call = self._connection.call(service, "UpdateContainers", request, nri.UpdateContainersResponse, _SECONDS)
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(_SECONDS)

    def knows_all(self) -> bool:
        """Whether it has been told what there is."""
        return any(method == "Synchronize" and not request.more for method, request in self.calls)

    def methods(self) -> list[str]:
        """Of the calls since the registration, in their order."""
        return [method for method, _ in self.calls if method not in ("Configure", "Synchronize")]

    def request(self, method: str) -> Any:
        """The last one of that method."""
        return next(request for name, request in reversed(self.calls) if name == method)

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until the condition holds. Raises AssertionError when that takes too long."""
        deadline = time.monotonic() + _SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.calls
            time.sleep(0.005)


def objection(text: str) -> CallRefused:
    """What a plugin answers that is against it."""
    return CallRefused(2, text)


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
