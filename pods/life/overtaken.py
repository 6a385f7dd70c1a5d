"""What a call answers when its pod or container has ended meanwhile, as another call has asked for.

What the call needed was taken away under it, and it can fail in any place, with any error. That is no fault of the
node's (INTERNAL, which clients try again): it is the answer that the call would have got if it had come a moment later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from pods.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PodError,
    ResourceExhausted,
    Unimplemented,
)
from runtime.errors import RuntimeCoreError

if TYPE_CHECKING:
    from pods.state.memory import State

# These say what the caller can do, whoever ends the pod.
_ANSWERS: Final = (
    AlreadyExists, DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unimplemented,
)  # fmt: skip


@contextlib.contextmanager
def in_sandbox(state: State, sandbox_id: str) -> Iterator[None]:
    """Wrap a call about a sandbox. Raises NotFound, InvalidArgument, and FailedPrecondition if its end overtook it."""
    found = state.find_sandbox(sandbox_id).sandbox.id
    with _explained(state, found):
        yield


@contextlib.contextmanager
def in_container(state: State, container_id: str) -> Iterator[None]:
    """The same for a call about a container, which may also end alone."""
    found = state.find_container(container_id).container
    with _explained(state, found.sandbox_id, found.id):
        yield


@contextlib.contextmanager
def _explained(state: State, sandbox_id: str, container_id: str = "") -> Iterator[None]:
    try:
        yield
    except (PodError, RuntimeCoreError, OSError) as error:
        why = "" if isinstance(error, _ANSWERS) else state.end_of(sandbox_id, container_id)
        if not why:
            raise
        raise FailedPrecondition(f"{why}: {error}") from error
