"""CheckpointPod: saves a pod's running containers as of one instant.

A checkpoint is a directory. `pod.json` has the configuration of the pod and its containers; beside it is an archive for
each container, in the same order, as CheckpointContainer writes it (`pods/checkpoint/write.py`). The pod's shim freezes
all containers together, and thaws them even if crispd dies meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pods import log_fields
from pods.checkpoint import pod_file
from pods.checkpoint.write import write_archive
from pods.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, PodError, Unimplemented
from pods.handlers import BUILT_IN
from pods.model import Container, Sandbox
from pods.security import user_namespaces
from pods.undo import Undo
from runtime.criu import worker as criu
from runtime.errors import NotSupported, RuntimeCoreError
from runtime.wire.calls import Freeze, Thaw

if TYPE_CHECKING:
    from pods.inflight import Background
    from pods.life.shims import Shims
    from pods.state.memory import State

_log = logging.getLogger("crisp.pods")
_UNDO_SECONDS: Final = 1.0  # part of the deadline, reserved for thawing and clean-up


class PodCheckpoints:
    """Checkpoints pods."""

    def __init__(self, state: State, shims: Shims, background: Background) -> None:
        self._state = state
        self._shims = shims
        self._background = background

    async def checkpoint(self, sandbox_id: str, output: Path, container_ids: Sequence[str], seconds: float) -> None:
        """Write a checkpoint of a ready pod's running containers into an empty directory, within `seconds`.

        Raises NotFound, InvalidArgument, FailedPrecondition, DeadlineExceeded, Unimplemented, PodError. After an error
        the containers run on, and the directory is empty again.
        """
        deadline = time.monotonic() + seconds - _UNDO_SECONDS
        record = self._state.find_sandbox(sandbox_id)
        if record.sandbox.runtime_handler not in BUILT_IN:
            handler = record.sandbox.runtime_handler
            raise Unimplemented(f"checkpoint pod: handler {handler!r} cannot do it, only crisp's own can")
        if user_namespaces.mappings_of(record.sandbox.config) is not None:
            raise Unimplemented("checkpoint pod: the pod has a user namespace, and criu cannot restore into one")
        _require_empty(output)
        await self._background.shielded(self._checkpoint(record.sandbox, output, container_ids, deadline))

    async def _checkpoint(
        self, sandbox: Sandbox, output: Path, container_ids: Sequence[str], deadline: float
    ) -> None:
        async with contextlib.AsyncExitStack() as held:
            await held.enter_async_context(self._state.lock(sandbox.id))  # a shim can freeze only once at a time
            found = sorted({self._state.find_container(one).container.id for one in container_ids})
            for container_id in found:
                await held.enter_async_context(self._state.lock(container_id))
            containers = [self._selected(sandbox, container_id) for container_id in found]
            try:
                criu.find()
                await self._capture(sandbox, output, containers, deadline)
            except TimeoutError as error:
                raise _too_late() from error
            except NotSupported as error:
                raise FailedPrecondition(f"checkpoint pod sandbox {sandbox.id}: {error}") from error
            except (RuntimeCoreError, OSError, ValueError) as error:
                raise PodError(f"checkpoint pod sandbox {sandbox.id}: {error}") from error
        _log.info("pod checkpointed", extra=log_fields.of_sandbox(sandbox) | {"output": str(output)})

    def _selected(self, sandbox: Sandbox, container_id: str) -> Container:
        container = self._state.find_container(container_id).container
        if container.sandbox_id != sandbox.id:
            raise InvalidArgument(f"container_ids: container {container_id} is not in pod sandbox {sandbox.id}")
        self._state.ready_sandbox(sandbox.id)
        return self._state.running_container(container_id)

    async def _capture(
        self, sandbox: Sandbox, output: Path, containers: Sequence[Container], deadline: float
    ) -> None:
        targets = [output / pod_file.archive(number) for number in range(len(containers))]
        last_pid = 0
        async with Undo(log_fields.of_sandbox(sandbox)) as undo:
            try:
                async with self._stopped(sandbox, containers, deadline):
                    for container, target in zip(containers, targets, strict=True):
                        undo.register(f"remove {target}", target.unlink, missing_ok=True)
                        _left(deadline)
                        written = await asyncio.to_thread(self._write, sandbox, container, target, deadline)
                        last_pid = max(last_pid, written)
            finally:  # after the containers go on: it can take long
                await asyncio.to_thread(_clean, targets)
            _left(deadline)
            description = output / pod_file.NAME
            undo.register(f"remove {description}", description.unlink, missing_ok=True)
            await asyncio.to_thread(pod_file.write, sandbox, containers, last_pid, description)
            undo.discard()

    @contextlib.asynccontextmanager
    async def _stopped(
        self, sandbox: Sandbox, containers: Sequence[Container], deadline: float
    ) -> AsyncIterator[None]:
        """Keep the containers frozen. The shim thaws them by itself if this daemon dies or exceeds the deadline."""
        shim = self._shims.of(sandbox.id)
        names = tuple(container.id for container in containers)
        await shim.call(Freeze(names, seconds=_left(deadline) + _UNDO_SECONDS))
        try:
            yield
        finally:
            await shim.call(Thaw())

    def _write(self, sandbox: Sandbox, container: Container, target: Path, deadline: float) -> int:
        return write_archive(self._state.settings, sandbox, container, _work(target), target, deadline)


def _work(target: Path) -> Path:
    return target.with_name(f".{target.name}.work")


def _clean(targets: Sequence[Path]) -> None:
    for target in targets:
        shutil.rmtree(_work(target), ignore_errors=True)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("checkpoint pod: deadline exceeded; the containers run on, the checkpoint is removed")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _too_late()
    return left


def _require_empty(output: Path) -> None:
    try:
        # A link is refused: whoever made the directory is trusted with that directory only.
        descriptor = os.open(output, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidArgument(f"output_path: {str(output)!r}: {error.strerror}") from error
    try:
        if os.listdir(descriptor):
            raise InvalidArgument(f"output_path: {str(output)!r} is not empty")
    finally:
        os.close(descriptor)
