"""The life of a container: its states, what takes it from one to another, and what can be done in each.

                   ┌───────── StartFailed, Exited ──────────┐
                   │                                        ▼
    (created) ─▶ CREATED ──Started──▶ RUNNING ──Exited──▶ EXITED ─▶ (removed)
                                                           │  ▲
                                                           └──┘ Ran

    CREATED   can start, and be removed. New limits wait for the start. It exits without one when its pod is stopped or
              lost.
    RUNNING   can exec, be attached to, checkpointed, joined by another container, stopped. New limits count at once.
    EXITED    can be removed. Ran: the shim tells later that it did run.

A container that goes on from a checkpoint is started as any other. One that lost its shim has nobody to tell how it
ends: it is killed, and has exited with `UNSEEN` unless the shim left its status on disk. So CRI's CONTAINER_UNKNOWN is
never told; a pod whose shim lives and does not answer keeps the states that are known.

All that changes `Container.state` is in `after`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from pods.errors import FailedPrecondition
from pods.model import Container, ContainerState
from runtime.wire.calls import START_FAILED

UNSEEN: Final = 255  # the exit code of a container that nobody saw end


@dataclass(frozen=True, slots=True)
class Started:
    """Its program runs. Times are nanoseconds since the epoch here."""

    pid: int
    at: int


@dataclass(frozen=True, slots=True)
class StartFailed:
    """Its program never ran, or was ended as if it had not."""

    message: str
    at: int
    code: int = START_FAILED
    reason = "StartError"


@dataclass(frozen=True, slots=True)
class Exited:
    """It has ended, or never will run."""

    code: int
    at: int
    oom: bool = False

    @property
    def reason(self) -> str:
        return "OOMKilled" if self.oom else "Completed" if self.code == 0 else "Error"


@dataclass(frozen=True, slots=True)
class Ran:
    """It was taken for never started, and had been."""

    started_at: int


Event = Started | StartFailed | Exited | Ran


def after(container: Container, event: Event) -> Container:
    """The container after the event. Raises ValueError, for a fault of crisp's, where the picture has no such arrow."""
    match container.state, event:
        case ContainerState.CREATED, Started(pid, at):
            return msgspec.structs.replace(container, state=ContainerState.RUNNING, pid=pid, started_at=at)
        case ContainerState.CREATED, StartFailed(message, at, code):
            return _over(container, code, at, event.reason, message)
        case ContainerState.CREATED | ContainerState.RUNNING, Exited(code, at):
            return _over(container, code, at, event.reason)
        case ContainerState.EXITED, Ran(started_at) if not container.started_at:
            return msgspec.structs.replace(container, started_at=started_at)
    raise ValueError(f"container {container.id} is {container.state.value}: {type(event).__name__} cannot happen to it")


def _over(container: Container, code: int, at: int, reason: str, message: str = "") -> Container:
    return msgspec.structs.replace(
        container, state=ContainerState.EXITED, pid=0, exit_code=code, finished_at=at, reason=reason, message=message
    )


# -- what can be done -------------------------------------------------------------------------------------------------


def can_start(container: Container) -> bool:
    return container.state is ContainerState.CREATED


def can_exec(container: Container) -> bool:
    """Whether it runs: it can have commands, be attached to, joined, checkpointed, and its log be reopened."""
    return container.state is ContainerState.RUNNING


def can_stop(container: Container) -> bool:
    return container.state is ContainerState.RUNNING


def can_update(container: Container) -> bool:
    """Whether new limits count at once; those of a created container wait for its start."""
    return container.state is ContainerState.RUNNING


def is_over(container: Container) -> bool:
    return container.state is ContainerState.EXITED


def require_startable(container: Container) -> None:
    """Raise FailedPrecondition for what has been started before."""
    if not can_start(container):
        raise FailedPrecondition(f"container {container.id} is {container.state.value}, not created")


def require_running(container: Container, field: str = "") -> None:
    """Raise FailedPrecondition, about the member `field` of a request if that names the container."""
    if not can_exec(container):
        about = f"{field}: " if field else ""
        raise FailedPrecondition(f"{about}container {container.id} is {container.state.value}, not running")
