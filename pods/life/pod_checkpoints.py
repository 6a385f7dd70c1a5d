"""CheckpointPod and RestorePod: save a pod's running containers as of one instant, and resume them in a new pod.

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
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from image.model import Image
from pods import log_fields, octets
from pods.checkpoint import restore as restores
from pods.checkpoint.write import write_archive
from pods.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, PodError, Unimplemented
from pods.handlers import BUILT_IN
from pods.model import Container, ContainerConfig, Sandbox, SandboxConfig
from pods.security import user_namespaces
from pods.undo import Undo
from runtime.criu import worker as criu
from runtime.errors import NotSupported, RuntimeCoreError
from runtime.wire.calls import Freeze, Thaw

if TYPE_CHECKING:
    from image.store import ImageStore
    from pods.inflight import Background
    from pods.life.creation import Creations
    from pods.life.sandboxes import Sandboxes
    from pods.life.shims import Shims
    from pods.state.memory import State
    from pods.trace import Trace

_log = logging.getLogger("crisp.pods")
_POD: Final = "pod.json"
_LARGEST: Final = 16 << 20
_FORMAT: Final = 1
_UNDO_SECONDS: Final = 1.0  # part of the deadline, reserved for thawing and clean-up
# Members of a request that describe the captured processes.
_PROCESS: Final = ("command", "args", "working_dir", "envs", "stdin", "stdin_once", "tty")
_CREDENTIALS: Final = (
    "run_as_user", "run_as_group", "run_as_username", "supplemental_groups", "groups_policy", "no_new_privs",
)  # fmt: skip


class PodCheckpoint(msgspec.Struct, frozen=True):
    """The content of `pod.json`."""

    format: int
    handler: str
    sandbox: SandboxConfig
    containers: dict[str, ContainerConfig]  # by name
    images: dict[str, str]  # image ids, by the container's name


class PodCheckpoints:
    """Checkpoints pods, and restores them."""

    def __init__(
        self,
        state: State,
        shims: Shims,
        images: ImageStore,
        sandboxes: Sandboxes,
        creations: Creations,
        background: Background,
    ) -> None:
        self._state = state
        self._shims = shims
        self._images = images
        self._sandboxes = sandboxes
        self._creations = creations
        self._background = background

    # -- checkpoint ---------------------------------------------------------------------------------------------------

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
        async with Undo(log_fields.of_sandbox(sandbox)) as undo:
            async with self._stopped(sandbox, containers, deadline):
                for number, container in enumerate(containers):
                    archive = output / _archive(number)
                    undo.register(f"remove {archive}", archive.unlink, missing_ok=True)
                    await asyncio.to_thread(self._write, sandbox, container, archive, _left(deadline))
                _left(deadline)
            description = output / _POD
            undo.register(f"remove {description}", description.unlink, missing_ok=True)
            await asyncio.to_thread(_write_description, sandbox, containers, description)
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

    def _write(self, sandbox: Sandbox, container: Container, target: Path, seconds: float) -> None:
        work = target.with_name(f".{target.name}.work")
        try:
            write_archive(self._state.settings, sandbox, container, work, target, max(1, int(seconds)))
        finally:
            shutil.rmtree(work, ignore_errors=True)

    # -- restore ------------------------------------------------------------------------------------------------------

    async def restore(
        self,
        directory: Path,
        config: SandboxConfig,
        handler: str,
        containers: Sequence[ContainerConfig],
        seconds: float,
        trace: Trace,
    ) -> tuple[str, dict[str, str]]:
        """Create a pod whose containers resume from a checkpoint when started. Returns its id, and theirs by name.

        Raises NotFound, InvalidArgument if the request does not fit the checkpoint, FailedPrecondition,
        DeadlineExceeded, and what RunPodSandbox and CreateContainer raise. After an error nothing of the pod is left.
        """
        saved = await asyncio.to_thread(_read_description, directory)
        by_name = {container.metadata.name: container for container in containers}
        self._require_fitting(saved, handler, by_name)
        try:
            async with asyncio.timeout(max(0.0, seconds - _UNDO_SECONDS)):
                return await self._restore(directory, saved, config, handler, by_name, trace)
        except TimeoutError as error:
            reason = f"restore pod from {str(directory)!r}: did not finish within {seconds:.1f} s"
            raise DeadlineExceeded(reason) from error

    async def _restore(
        self,
        directory: Path,
        saved: PodCheckpoint,
        config: SandboxConfig,
        handler: str,
        containers: Mapping[str, ContainerConfig],
        trace: Trace,
    ) -> tuple[str, dict[str, str]]:
        existed = self._sandboxes.is_known(config)  # e.g. from an earlier identical request whose answer was lost
        sandbox_id = await self._sandboxes.run(config, handler, trace)
        async with Undo({"sandbox": sandbox_id, "pod": log_fields.pod_name(config)}) as undo:
            if not existed:
                undo.register("remove the pod sandbox", self._sandboxes.remove, sandbox_id)
            made = {
                name: await self._creations.create(
                    sandbox_id, containers[name], trace, str(directory / _archive(number))
                )
                for number, name in enumerate(saved.containers)
            }
            undo.discard()
        return sandbox_id, made

    def _require_fitting(
        self, saved: PodCheckpoint, handler: str, containers: Mapping[str, ContainerConfig]
    ) -> None:
        if handler not in BUILT_IN:
            raise InvalidArgument(f"runtime_handler: {handler!r} cannot restore checkpoints, only crisp's own can")
        if containers.keys() != saved.containers.keys():
            there = ", ".join(sorted(saved.containers))
            raise InvalidArgument(
                f"container_configs: {', '.join(sorted(containers))} are given, but the checkpoint has {there}"
            )
        for name, container in containers.items():
            _require_same(f"container_configs[{name!r}]", saved.containers[name], container)
            image = self._image(container)
            if image.id != saved.images[name]:
                raise InvalidArgument(
                    f"container_configs[{name!r}].image: {container.image.image!r} is {image.id}, but the checkpoint "
                    f"was made with {saved.images[name]}"
                )

    def _image(self, container: ContainerConfig) -> Image:
        image = self._images.find(container.image.image)
        if image is None:
            raise NotFound(f"image {container.image.image!r} is not on this node: pull it first")
        return image


def _archive(number: int) -> str:
    return f"container-{number}.tar"


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("checkpoint pod: deadline exceeded; the containers run on, the checkpoint is removed")
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


def _write_description(sandbox: Sandbox, containers: Sequence[Container], target: Path) -> None:
    """Write `pod.json`, the last file: a directory without it is no checkpoint."""
    description = PodCheckpoint(
        format=_FORMAT,
        handler=sandbox.runtime_handler,
        sandbox=sandbox.config,
        containers={one.config.metadata.name: one.config for one in containers},
        images={one.config.metadata.name: one.image_id for one in containers},
    )
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(octets.encode(description).encode())
        file.flush()
        os.fsync(file.fileno())
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read_description(directory: Path) -> PodCheckpoint:
    path = directory / _POD
    descriptor = restores.open_trusted(str(path), "checkpoint_path")
    with os.fdopen(descriptor, "rb") as file:
        text = file.read(_LARGEST + 1)
    try:
        found = octets.decode(text.decode(), PodCheckpoint)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"checkpoint_path: {str(path)!r} is not a pod's checkpoint: {error}") from error
    if found.format != _FORMAT or len(text) > _LARGEST:
        raise InvalidArgument(f"checkpoint_path: {str(path)!r} has format {found.format}; this crisp reads {_FORMAT}")
    return found


def _require_same(path: str, saved: ContainerConfig, wanted: ContainerConfig) -> None:
    """Refuse a request for other processes than the captured ones. Messages leave values out: they may be secret."""
    for name in _PROCESS:
        if getattr(saved, name) != getattr(wanted, name):
            raise InvalidArgument(f"{path}.{name}: differs from the checkpointed container's")
    for name in _CREDENTIALS:
        if getattr(saved.security, name) != getattr(wanted.security, name):
            raise InvalidArgument(f"{path}.linux.security_context.{name}: differs from the checkpointed container's")
