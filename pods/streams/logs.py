"""ReopenContainerLog: continues a log in a new file after a rotation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pods.errors import FailedPrecondition, PodError
from runtime.client import ShimGone
from runtime.errors import NotRunning, RuntimeCoreError
from runtime.wire.calls import ReopenLog

if TYPE_CHECKING:
    from pods.life.shims import Shims
    from pods.state.memory import State


async def reopen_log(state: State, shims: Shims, container_id: str) -> None:
    """Continue in a new file at the log path. Raises FailedPrecondition if the container does not run, PodError."""
    container = state.running_container(container_id)
    try:
        await shims.ask(container.sandbox_id, ReopenLog(container.id))
    except (ShimGone, NotRunning) as error:  # its exit is not recorded yet
        raise FailedPrecondition(f"container {container.id} is gone: {error}") from error
    except RuntimeCoreError as error:
        raise PodError(f"reopen log {container.log_path!r} of container {container.id}: {error}") from error
