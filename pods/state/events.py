"""What happens to sandboxes and containers, told to whoever listens (CRI GetContainerEvents)."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import Final
from weakref import WeakSet

from pods.errors import PodError, ResourceExhausted, Unavailable
from pods.model import Container, ContainerState, Sandbox, SandboxState

QUEUE: Final = 4096  # events that a listener may be behind


class EventKind(IntEnum):
    """CRI `ContainerEventType`."""

    CREATED = 0
    STARTED = 1
    STOPPED = 2
    DELETED = 3


@dataclass(frozen=True, slots=True)
class Event:
    """`object_id` is a container's or the sandbox's own; the sandbox and its containers are as of `at`, nanoseconds."""

    object_id: str
    kind: EventKind
    at: int
    sandbox: Sandbox
    containers: tuple[Container, ...]


def sandbox_changes(old: Sandbox | None, new: Sandbox | None) -> tuple[EventKind, ...]:
    """What there is to tell of a sandbox that was `old` and is `new`; None while it is not there."""
    if new is None:
        return (EventKind.DELETED,)
    if old is None:
        ready = new.state is SandboxState.READY
        return (EventKind.CREATED, EventKind.STARTED) if ready else (EventKind.CREATED,)
    stopped = old.state is SandboxState.READY and new.state is not SandboxState.READY
    return (EventKind.STOPPED,) if stopped else ()


def container_changes(old: Container | None, new: Container | None) -> tuple[EventKind, ...]:
    """As `sandbox_changes`. A start that failed stops a container which never started."""
    if new is None:
        return (EventKind.DELETED,)
    if old is None:
        return (EventKind.CREATED,)
    if old.state is new.state:
        return ()
    if new.state is ContainerState.RUNNING:
        return (EventKind.STARTED,)
    return (EventKind.STOPPED,) if new.state is ContainerState.EXITED else ()


class Listener:
    """Events from the moment of its making on. Ends with an error only, which tells why no more follow."""

    def __init__(self) -> None:
        self._queue: deque[Event] = deque()
        self._ready = asyncio.Event()
        self._failure: PodError | None = None

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> Event:
        """The next event. Raises ResourceExhausted once some were lost, Unavailable when the node closes."""
        while not self._queue:
            if self._failure is not None:
                raise self._failure
            self._ready.clear()
            await self._ready.wait()
        return self._queue.popleft()

    def take(self, event: Event) -> bool:
        """Whether there was room for it."""
        if len(self._queue) >= QUEUE:
            self._queue.clear()
            self.fail(
                ResourceExhausted(f"listen for events: {QUEUE} were not read in time and are lost; list, then listen")
            )
            return False
        self._queue.append(event)
        self._ready.set()
        return True

    def fail(self, failure: PodError) -> None:
        """End after what is queued."""
        self._failure = failure
        self._ready.set()


class Events:
    """The listeners. One that nobody holds any more is forgotten."""

    def __init__(self) -> None:
        self._listeners: WeakSet[Listener] = WeakSet()
        self._last = 0
        self._closed: PodError | None = None

    def __len__(self) -> int:
        return len(self._listeners)

    def listen(self) -> Listener:
        """A new listener; everything that happens after this call will come to it."""
        listener = Listener()
        if self._closed:
            listener.fail(self._closed)
        else:
            self._listeners.add(listener)
        return listener

    def tell(
        self, object_id: str, kinds: tuple[EventKind, ...], sandbox: Sandbox, containers: tuple[Container, ...]
    ) -> None:
        """Tell everybody. No two events are of the same time, and none is before an earlier one."""
        for kind in kinds:
            self._last = max(time.time_ns(), self._last + 1)
            event = Event(object_id, kind, self._last, sandbox, containers)
            for listener in list(self._listeners):
                if not listener.take(event):
                    self._listeners.discard(listener)

    def close(self) -> None:
        """End all listeners, and those to come: crispd stops."""
        self._closed = Unavailable("listen for events: crispd is stopping")
        for listener in list(self._listeners):
            listener.fail(self._closed)
        self._listeners.clear()
