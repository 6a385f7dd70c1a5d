"""The exits of containers: what shims report, and what is known of those whose shim is gone."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import TYPE_CHECKING

from pods import log_fields
from pods.errors import PodError
from pods.model import Container, ContainerState
from pods.state.plugins import Moment
from runtime.wire.calls import ExitStatus, exit_file

if TYPE_CHECKING:
    from pods.cgroups.driver import Cgroups
    from pods.inflight import Background
    from pods.model import Sandbox
    from pods.state.memory import State

_log = logging.getLogger("crisp.pods")


class Exits:
    """Makes exits durable and known, each once."""

    def __init__(self, state: State, cgroups: Cgroups, background: Background) -> None:
        self._state = state
        self._cgroups = cgroups
        self._background = background

    def exited(self, container_id: str, status: ExitStatus) -> None:
        """A shim reports an exit."""
        self._background.detach(self.record(container_id, status), f"record exit of container {container_id}")

    async def record(self, container_id: str, status: ExitStatus) -> None:
        """Make an exit durable and known."""
        if status.start_failed:
            return  # the start's own answer tells it
        async with self._state.lock(container_id):
            record = self._state.containers.get(container_id)
            if record is None or record.container.state is ContainerState.EXITED:
                return
            code = status.code
            reason = "OOMKilled" if status.oom else "Completed" if code == 0 else "Error"
            try:
                await self._state.record_fact(
                    container_id,
                    state=ContainerState.EXITED,
                    pid=0,
                    exit_code=code,
                    reason=reason,
                    finished_at=status.finished_at,
                )
            except PodError as error:
                fields = log_fields.of_container(record.container) | {"error": error}
                _log.error("could not record an exit", extra=fields)
            await self._tell_of_stop(container_id)
        fields = log_fields.of_container(record.container) | {"code": code, "reason": reason}
        _log.info("container exited", extra=fields)

    async def record_unknown(self, container_id: str) -> None:
        """Record the exit of a container that nobody saw end."""
        await self.record(container_id, _unknown_status())

    async def _tell_of_stop(self, container_id: str) -> None:
        record = self._state.containers.get(container_id)
        sandbox = self._state.sandboxes.get(record.container.sandbox_id) if record is not None else None
        if record is not None and sandbox is not None:
            await self._state.happened(Moment.STOP, sandbox.sandbox, record.container)

    async def lost(self, sandbox_id: str) -> None:
        """The shim is gone: kill what still runs, and record every container as exited."""
        record = self._state.sandboxes.get(sandbox_id)
        for container in list(self._state.containers_of(sandbox_id)):
            # A start that the shim did not live to answer may have come to pass.
            started = container.state is not ContainerState.EXITED or container.reason == "StartError"
            if record is not None and started:
                await asyncio.to_thread(self._cgroups.kill_container, record.sandbox, container.id)
            await self.record(container.id, self._status_on_disk(container) or _unknown_status())

    async def clear_cgroups(self, sandbox: Sandbox) -> None:
        """End and take away what a shim that is gone could not: on all other days there is nothing."""
        for container in list(self._state.containers_of(sandbox.id)):
            if self._cgroups.has_container(sandbox, container.id):
                await asyncio.to_thread(self._cgroups.kill_container, sandbox, container.id)

    def _status_on_disk(self, container: Container) -> ExitStatus | None:
        directory = self._state.settings.sandbox_dir(container.sandbox_id)
        try:
            with open(exit_file(str(directory), container.id), "rb") as file:
                return ExitStatus.from_json(json.load(file))
        except (OSError, ValueError, TypeError):
            return None


def _unknown_status() -> ExitStatus:
    return ExitStatus(255, finished_at=time.time_ns())
