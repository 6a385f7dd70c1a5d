"""StartContainer: runs a created container's program."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
import os
import time
from typing import TYPE_CHECKING, Final

from image.errors import ImageError
from pods import bundle, foreign_files, log_fields, log_place
from pods.checkpoint import members
from pods.container_limits import LOG_RATE
from pods.errors import PodError
from pods.life.denied import denied
from pods.life.hidden import hidden
from pods.model import Container
from pods.state.plugins import PluginEvent
from pods.state.transitions import Started, StartFailed, require_startable
from runtime.client import ShimGone
from runtime.criu import worker as criu
from runtime.errors import ExecFailed, RuntimeCoreError
from runtime.wire import calls
from runtime.wire.states import CREATED

if TYPE_CHECKING:
    from image.store import ImageStore
    from pods.inflight import Background
    from pods.life.shims import Shims
    from pods.model import Sandbox
    from pods.security.filter_cache import FilterCache
    from pods.state.memory import State
    from pods.trace import Trace

_log = logging.getLogger("crisp.pods")
_AUDIT_SECONDS: Final = 0.05  # until a thread of the kernel's has written what was denied to its log


class Starts:
    """Starts containers. A start goes on if its caller goes away."""

    def __init__(
        self, state: State, shims: Shims, images: ImageStore, filters: FilterCache, background: Background
    ) -> None:
        self._state = state
        self._shims = shims
        self._images = images
        self._background = background
        self._filters = filters

    async def start(self, container_id: str, trace: Trace) -> None:
        """Run the container's program. Raises FailedPrecondition if it was started before."""
        found = self._state.find_container(container_id).container.id
        await self._background.shielded(self._start(found, trace))

    async def _start(self, container_id: str, trace: Trace) -> None:
        async with self._state.lock(container_id):
            container, sandbox = self._startable(container_id)
            begun = time.time()
            await self._state.happens(PluginEvent.START, sandbox, container)
            try:
                if container.log_path:
                    log_place.make_log(container.log_path, sandbox.config.log_directory)
                answer = await self._start_in_shim(container, sandbox, trace)
            except (PodError, RuntimeCoreError, ImageError, OSError) as error:
                told = f"{error}{await self._unsaid(container, error, begun)}"
                await self._record_failure(container, told)
                raise PodError(f"start container {container_id}: {told}") from error
            for warning in answer.warnings:
                self._state.recorder.part(container_id).said(warning, "warning")
                _warn_once(warning)
            await self._record(container, answer)
            trace.step("start durable")
            if (now := self._state.containers.get(container_id)) is not None:
                await self._state.happened(PluginEvent.POST_START, sandbox, now.container)
            _log.info("container started", extra=log_fields.of_container(container) | {"pid": answer.pid})

    def _startable(self, container_id: str) -> tuple[Container, Sandbox]:
        container = self._state.find_container(container_id).container
        require_startable(container)
        return container, self._state.ready_sandbox(container.sandbox_id)

    async def _start_in_shim(self, container: Container, sandbox: Sandbox, trace: Trace) -> calls.Started:
        program, flags = await self._filter(container)
        call = calls.Start(
            container=container.id,
            log=container.log_path,
            log_trusted=log_place.trusted(sandbox.config.log_directory) if container.log_path else "",
            stdin=container.config.stdin,
            stdin_once=container.config.stdin_once,
            filter_flags=flags,
            trace=trace.on,
            log_limit=self._state.settings.container_log_limit,
            log_rate=LOG_RATE.of(sandbox.config, container.config, self._state.settings),
        )
        if container.checkpoint:
            work = self._state.settings.container_root(container.id) / "criu"
            work.mkdir(mode=0o700, exist_ok=True)
            call = dataclasses.replace(call, restore=self._checkpoint(container), work=str(work), criu=criu.find())
        self._state.log_counts.begun(container.id)
        shim = self._shims.of(container.sandbox_id)
        try:
            answer = await shim.start(call, program)
        except ShimGone:
            if not self._shims.has_successor(container.sandbox_id, shim):
                raise
            answer = await self._start_in_successor(call, container, program)
        trace.add(answer.steps)
        trace.step("shim answered")
        return answer

    async def _start_in_successor(self, call: calls.Start, container: Container, program: bytes) -> calls.Started:
        """Learn how far a start came whose shim died, and begin it again if it came nowhere."""
        known = await self._shims.ask(container.sandbox_id, calls.WaitStart(container.id))
        if known.state == CREATED:
            return await self._shims.of(container.sandbox_id).start(call, program)
        if not known.started_at:
            raise ShimGone("the pod's shim died while it started the container")
        return calls.Started(known.pid, known.started_at)

    async def _unsaid(self, container: Container, error: Exception, begun: float) -> str:
        """Return what to add to the error: the volume that hides the program, or what SELinux denied."""
        if not isinstance(error, ExecFailed) or error.errno not in (errno.ENOENT, errno.EACCES):
            return ""
        document = bundle.read_config(self._state.settings.bundle_dir(container.id)) or {}
        process = document.get("process", {})
        try:
            layers = self._images.layers_of(container.image_id)
            if error.errno == errno.ENOENT:
                return await asyncio.to_thread(hidden, str(error), container.config.mounts, process, layers)
            if "selinuxLabel" not in process:
                return ""
            await asyncio.sleep(_AUDIT_SECONDS)
            root = [self._state.settings.container_root(container.id) / "upper", *layers]
            found = await foreign_files.touch("look at a label", denied, str(error), document, root, begun)
            return f": {found}" if found else ""
        except (PodError, ImageError, OSError):
            return ""

    def _checkpoint(self, container: Container) -> str:
        """Return the directory of criu's images. Raises ImageError.

        Of a layer that is mounted, the recorded path names a descriptor of the crispd that created the container, which
        may have ended since: another process may have its number.
        """
        if not container.checkpoint_image_id:
            return container.checkpoint
        return os.fspath(self._images.layers_of(container.checkpoint_image_id)[0] / members.IMAGES)

    async def _filter(self, container: Container) -> tuple[bytes, int]:
        directory = self._state.settings.bundle_dir(container.id)
        if (found := bundle.read_filter(directory)) is not None:
            return found
        document = bundle.read_config(directory)
        if document is None:
            raise PodError(f"read {directory / 'config.json'}: missing or damaged; remove the container")
        return await self._filters.of(document)

    async def _record(self, container: Container, answer: calls.Started) -> None:
        try:
            await self._state.record(container.id, Started(pid=answer.pid, at=answer.started_at))
        except PodError:
            # The caller takes the start for failed, so the container must not run. Its exit is recorded as usual.
            await self._shims.ask(container.sandbox_id, calls.Kill(container.id))
            raise

    async def _record_failure(self, container: Container, message: str) -> None:
        _log.info("could not start container", extra=log_fields.of_container(container) | {"error": message})
        try:
            await self._state.record(container.id, StartFailed(message, at=time.time_ns()))
        except PodError as error:
            fields = log_fields.of_container(container) | {"error": error}
            _log.error("could not write a failed start to the state database", extra=fields)


_warned: set[str] = set()


def _warn_once(warning: str) -> None:
    kind = warning.partition(" ")[0]
    if kind not in _warned:
        _warned.add(kind)
        _log.warning("%s (logged once)", warning)
