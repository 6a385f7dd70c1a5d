"""The life of a container: its states, the events between them, and what is allowed in each.

                   ┌───────── StartFailed, Exited ──────────┐
                   │                                        ▼
    (created) ─▶ CREATED ──Started──▶ RUNNING ──Exited──▶ EXITED ─▶ (removed)
                                                           │  ▲
                                                           └──┘ Ran

    CREATED   can be started or removed. New limits apply at the start. It exits without a start when its pod is stopped
              or lost.
    RUNNING   can be exec'd into, attached to, checkpointed, joined by another container, stopped. New limits apply at
              once.
    EXITED    can be removed. Ran: the shim reports later that the container did run.

A container restored from a checkpoint starts like any other. A container that lost its shim is killed, because nothing
could report its end; its exit code is `UNSEEN` unless the shim left a status on disk. So CRI's CONTAINER_UNKNOWN never
occurs; if a pod's shim lives but does not answer, its containers keep their last known states.

Only `after` changes `Container.state`.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from pods.errors import FailedPrecondition
from pods.model import Container, ContainerState
from runtime.wire.calls import START_FAILED


@dataclass(frozen=True, slots=True)
class Started:
    """The container's program runs. Times here are nanoseconds since the epoch."""

    pid: int
    at: int


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The container's program never ran, or was killed before its start was complete."""

    message: str
    at: int
    code: int = START_FAILED
    reason = "StartError"


@dataclass(frozen=True, slots=True)
class Exited:
    """The container has ended, or will never run."""

    code: int
    at: int
    oom: bool = False

    @property
    def reason(self) -> str:
        return "OOMKilled" if self.oom else "Completed" if self.code == 0 else "Error"


@dataclass(frozen=True, slots=True)
class Ran:
    """A container recorded as never started did run."""

    started_at: int


Event = Started | StartFailed | Exited | Ran


def after(container: Container, event: Event) -> Container:
    """Return the container after the event. Raises ValueError, a bug, for a transition that is not drawn above."""
    match container.state, event:
        case ContainerState.CREATED, Started(pid, at):
            return msgspec.structs.replace(container, state=ContainerState.RUNNING, pid=pid, started_at=at)
        case ContainerState.CREATED, StartFailed(message, at, code):
            return _over(container, code, at, event.reason, message)
        case ContainerState.CREATED | ContainerState.RUNNING, Exited(code, at):
            return _over(container, code, at, event.reason)
        case ContainerState.EXITED, Ran(started_at) if not container.started_at:
            return msgspec.structs.replace(container, started_at=started_at)
    raise ValueError(f"container {container.id} is {container.state.value}: event {type(event).__name__} is impossible")


def _over(container: Container, code: int, at: int, reason: str, message: str = "") -> Container:
    return msgspec.structs.replace(
        container, state=ContainerState.EXITED, pid=0, exit_code=code, finished_at=at, reason=reason, message=message
    )


# -- what can be done -------------------------------------------------------------------------------------------------


def can_start(container: Container) -> bool:
    return container.state is ContainerState.CREATED


def can_exec(container: Container) -> bool:
    """Return whether it runs: it can be exec'd into, attached to, joined, checkpointed, and its log be reopened."""
    return container.state is ContainerState.RUNNING


def can_stop(container: Container) -> bool:
    return container.state is ContainerState.RUNNING


def can_update(container: Container) -> bool:
    """Return whether new limits apply at once; those of a created container apply at its start."""
    return container.state is ContainerState.RUNNING


def is_over(container: Container) -> bool:
    return container.state is ContainerState.EXITED


def has_ended(container: Container) -> bool:
    """Return whether it is over and did run, or was to."""
    return is_over(container) and container.reason != StartFailed.reason


def require_startable(container: Container) -> None:
    """Raise FailedPrecondition if the container was started before."""
    if not can_start(container):
        raise FailedPrecondition(f"container {container.id} is {container.state.value}, not created")


def require_running(container: Container, field: str = "") -> None:
    """Raise FailedPrecondition if it does not run. `field` is the request's member that names it, if any."""
    if not can_exec(container):
        about = f"{field}: " if field else ""
        raise FailedPrecondition(f"{about}container {container.id} is {container.state.value}, not running")
