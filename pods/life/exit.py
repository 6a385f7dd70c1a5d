"""Records the exits of containers: those that shims report, and those of lost shims."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import time
from typing import TYPE_CHECKING, Final

from pods import handlers, log_fields
from pods.errors import PodError
from pods.life import end_clues, last_words
from pods.model import Container
from pods.state.plugins import PluginEvent
from pods.state.transitions import Exited, StartFailed, is_over
from runtime.wire.calls import UNSEEN, ExitStatus, exit_file

if TYPE_CHECKING:
    from pods.cgroups.driver import Cgroups
    from pods.inflight import Background
    from pods.life.end_clues import EndClues
    from pods.model import Sandbox
    from pods.state.memory import State

_log = logging.getLogger("crisp.pods")
_SIGNALS: Final = 128  # a greater exit code: a signal has ended the container
_FORBIDDEN: Final = _SIGNALS + signal.SIGSYS  # by seccomp


class Exits:
    """Makes exits durable and visible, each once."""

    def __init__(self, state: State, cgroups: Cgroups, background: Background, clues: EndClues) -> None:
        self._state = state
        self._cgroups = cgroups
        self._background = background
        self._clues = clues

    def exited(self, container_id: str, status: ExitStatus) -> None:
        """Record an exit that a shim reports, without waiting."""
        self._background.detach(self.record(container_id, status), f"record exit of container {container_id}")

    async def record(self, container_id: str, status: ExitStatus) -> None:
        """Make an exit durable and visible."""
        if status.start_failed:
            # Only for a start that nobody waits for: otherwise the start's answer was recorded while the lock was held.
            await self._record(container_id, StartFailed("", at=status.finished_at, code=status.code))
        else:
            await self._record(container_id, Exited(status.code, at=status.finished_at, oom=status.oom))

    async def record_unseen(self, container_id: str) -> None:
        """Record the exit of a container whose end nobody saw."""
        await self._record(container_id, Exited(UNSEEN, at=time.time_ns()))

    async def _record(self, container_id: str, event: Exited | StartFailed) -> None:
        async with self._state.lock(container_id):
            record = self._state.containers.get(container_id)
            if record is None or is_over(record.container):
                return
            if isinstance(event, Exited) and self._may_say_why(container_id, event):
                await self._record_last_words(record.container, event)
            if isinstance(event, Exited) and event.oom:
                clue = await end_clues.of_memory(container_id, self._state.containers)
                self._state.recorder.part(container_id).clue(clue)
            profile = record.container.config.security.seccomp
            if event.code == _FORBIDDEN and profile is not None and profile.localhost_ref:
                self._state.recorder.part(container_id).clue(f"the profile is {profile.localhost_ref}")
            try:
                await self._state.record(container_id, event)
            except PodError as error:
                fields = log_fields.of_container(record.container) | {"error": error}
                _log.error("could not write a container's exit to the state database", extra=fields)
            if isinstance(event, Exited):
                await self._tell_of_stop(container_id)
        fields = log_fields.of_container(record.container) | {"code": event.code, "reason": event.reason}
        _log.info("container exited", extra=fields)
        self._leave_cgroup(record.container)

    def _leave_cgroup(self, container: Container) -> None:
        """Have the driver forget the cgroup, without waiting: the container may stay in the lists for days."""
        record = self._state.sandboxes.get(container.sandbox_id)
        if record is None or record.sandbox.runtime_handler not in handlers.BUILT_IN:
            return
        driver = self._cgroups.of(record.sandbox)
        if driver.hold:
            leaving = driver.remove_container(record.sandbox, container.id)
            self._background.detach(leaving, f"remove cgroup of container {container.id}")

    def _may_say_why(self, container_id: str, event: Exited) -> bool:
        """Whether the log may tell why the container ended. If crispd has sent the signal that ended it, that is known.

        A reading takes a thread, for which a stop would wait.
        """
        by_signal = event.code > _SIGNALS and not event.oom
        asked = self._state.settings.record_last_words and bool(event.code)
        return asked and not (by_signal and container_id in self._state.ending)

    async def _record_last_words(self, container: Container, event: Exited) -> None:
        sandbox = self._state.sandboxes.get(container.sandbox_id)
        teller = self._state.recorder.part(container.id)
        if container.log_path and sandbox is not None:
            words = await last_words.of(container.log_path, sandbox.sandbox.config.log_directory)
            teller.wrote(words)
            teller.clue(await self._clues.of_words(container, sandbox.sandbox, event.code, words))

    async def _tell_of_stop(self, container_id: str) -> None:
        record = self._state.containers.get(container_id)
        sandbox = self._state.sandboxes.get(record.container.sandbox_id) if record is not None else None
        if record is not None and sandbox is not None:
            await self._state.happened(PluginEvent.STOP, sandbox.sandbox, record.container)

    async def lost(self, sandbox_id: str) -> None:
        """Handle a lost shim: kill what still runs, and record every container as exited."""
        record = self._state.sandboxes.get(sandbox_id)
        if record is not None and record.sandbox.runtime_handler not in handlers.BUILT_IN:
            await asyncio.to_thread(self._cgroups.kill_container, record.sandbox, sandbox_id)
        for container in list(self._state.containers_of(sandbox_id)):
            await self.end_unwatched(record.sandbox if record is not None else None, container)

    async def end_unwatched(self, sandbox: Sandbox | None, container: Container) -> None:
        """Kill a container without a shim and record its exit. The caller must not hold its lock."""
        # A start may have succeeded although the shim died before it answered.
        started = not is_over(container) or container.reason == "StartError"
        if sandbox is not None and started:
            await asyncio.to_thread(self._cgroups.kill_container, sandbox, container.id)
        if (status := self._status_on_disk(container)) is not None:
            await self.record(container.id, status)
        else:
            await self.record_unseen(container.id)

    async def clear_cgroups(self, sandbox: Sandbox) -> None:
        """Remove cgroups that a dead shim left, and kill what is in them. Usually there are none."""
        names = [container.id for container in self._state.containers_of(sandbox.id)]
        if sandbox.runtime_handler not in handlers.BUILT_IN:
            names.append(sandbox.id)  # of a sandbox that the other runtime made
        for name in names:
            if self._cgroups.has_container(sandbox, name):
                await asyncio.to_thread(self._cgroups.kill_container, sandbox, name)

    def _status_on_disk(self, container: Container) -> ExitStatus | None:
        directory = self._state.settings.sandbox_dir(container.sandbox_id)
        try:
            with open(exit_file(str(directory), container.id), "rb") as file:
                return ExitStatus.from_json(json.load(file))
        except (OSError, ValueError, TypeError):
            return None
