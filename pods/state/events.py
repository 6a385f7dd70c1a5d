"""Publishes the events of sandboxes and containers to listeners (CRI GetContainerEvents)."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Generic, TypeVar
from weakref import WeakSet

from pods.errors import PodError, ResourceExhausted, Unavailable
from pods.model import Container, ContainerState, Sandbox, SandboxState

Told = TypeVar("Told")

QUEUE: Final = 4096  # events that a listener may lag behind


class EventKind(IntEnum):
    """CRI `ContainerEventType`."""

    CREATED = 0
    STARTED = 1
    STOPPED = 2
    DELETED = 3


@dataclass(frozen=True, slots=True)
class Event:
    """An event at `at` nanoseconds. `object_id` is the container's or sandbox's; the values are as of that time."""

    object_id: str
    kind: EventKind
    at: int
    sandbox: Sandbox
    containers: tuple[Container, ...]


def sandbox_changes(old: Sandbox | None, new: Sandbox | None) -> tuple[EventKind, ...]:
    """Return the events for a sandbox that changes from `old` to `new`; None means that it does not exist."""
    if new is None:
        return (EventKind.DELETED,)
    if old is None:
        ready = new.state is SandboxState.READY
        return (EventKind.CREATED, EventKind.STARTED) if ready else (EventKind.CREATED,)
    stopped = old.state is SandboxState.READY and new.state is not SandboxState.READY
    return (EventKind.STOPPED,) if stopped else ()


def container_changes(old: Container | None, new: Container | None) -> tuple[EventKind, ...]:
    """Return the events for a container. A failed start counts as STOPPED though the container never started."""
    if new is None:
        return (EventKind.DELETED,)
    if old is None:
        return (EventKind.CREATED,)
    if old.state is new.state:
        return ()
    if new.state is ContainerState.RUNNING:
        return (EventKind.STARTED,)
    return (EventKind.STOPPED,) if new.state is ContainerState.EXITED else ()


class Listener(Generic[Told]):
    """Iterates over events since its creation. It ends only by an error, which says why no more follow."""

    def __init__(self) -> None:
        self._queue: deque[Told] = deque()
        self._ready = asyncio.Event()
        self._failure: PodError | None = None

    def __aiter__(self) -> Listener[Told]:
        return self

    async def __anext__(self) -> Told:
        """Return the next event. Raises ResourceExhausted after a loss, Unavailable when the node closes."""
        while not self._queue:
            if self._failure is not None:
                raise self._failure
            self._ready.clear()
            await self._ready.wait()
        return self._queue.popleft()

    def take(self, event: Told) -> bool:
        """Queue an event. Returns False if there was no room."""
        if len(self._queue) >= QUEUE:
            self._queue.clear()
            self.fail(
                ResourceExhausted(
                    f"listen for events: {QUEUE} were unread, and all of them are lost: connect again, then list"
                )
            )
            return False
        self._queue.append(event)
        self._ready.set()
        return True

    def fail(self, failure: PodError) -> None:
        """End the iteration after the queued events."""
        self._failure = failure
        self._ready.set()


class Events:
    """The listeners. One without other references is dropped."""

    def __init__(self) -> None:
        self._listeners: WeakSet[Listener[Event]] = WeakSet()
        self._last = 0
        self._closed: PodError | None = None

    def __len__(self) -> int:
        return len(self._listeners)

    def listen(self) -> Listener[Event]:
        """Return a new listener, which gets every event after this call."""
        listener: Listener[Event] = Listener()
        if self._closed:
            listener.fail(self._closed)
        else:
            self._listeners.add(listener)
        return listener

    def tell(
        self, object_id: str, kinds: tuple[EventKind, ...], sandbox: Sandbox, containers: tuple[Container, ...]
    ) -> None:
        """Send an event to all listeners. Times are strictly increasing."""
        for kind in kinds:
            self._last = max(time.time_ns(), self._last + 1)
            event = Event(object_id, kind, self._last, sandbox, containers)
            for listener in list(self._listeners):
                if not listener.take(event):
                    self._listeners.discard(listener)

    def close(self) -> None:
        """End all listeners, present and future: crispd stops."""
        self._closed = Unavailable("listen for events: crispd is stopping")
        for listener in list(self._listeners):
            listener.fail(self._closed)
        self._listeners.clear()
