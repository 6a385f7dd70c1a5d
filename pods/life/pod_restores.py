"""RestorePod: creates a pod whose containers resume from a checkpoint (`pod_checkpoints.py`) when they are started.

The pod and its containers become durable and visible together: nobody sees the pod ready before its containers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from image.model import Image
from pods.checkpoint import pod_file
from pods.checkpoint.pod_file import PodCheckpoint
from pods.errors import AlreadyExists, DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound
from pods.handlers import BUILT_IN
from pods.life.creation import explained
from pods.log_fields import pod_name
from pods.model import Container, ContainerConfig, Sandbox, SandboxConfig
from pods.state.transitions import can_start
from runtime.wire.calls import GetState

if TYPE_CHECKING:
    from image.store import ImageStore
    from pods.life.creation import Creation, Creations, Prepared
    from pods.life.sandboxes import Sandboxes
    from pods.life.shims import Shims
    from pods.state.memory import State
    from pods.state.store import ContainerRecord
    from pods.trace import Trace
    from pods.undo import Undo

_UNDO_SECONDS: Final = 1.0  # part of the deadline, reserved for clean-up
# Members of a request that describe the captured processes.
_PROCESS: Final = ("command", "args", "working_dir", "envs", "stdin", "stdin_once", "tty")
_CREDENTIALS: Final = (
    "run_as_user", "run_as_group", "run_as_username", "supplemental_groups", "groups_policy", "no_new_privs",
)  # fmt: skip


class PodRestores:
    """Restores pods from checkpoints."""

    def __init__(
        self, state: State, shims: Shims, images: ImageStore, sandboxes: Sandboxes, creations: Creations
    ) -> None:
        self._state = state
        self._shims = shims
        self._images = images
        self._sandboxes = sandboxes
        self._creations = creations

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
        deadline = asyncio.get_running_loop().time() + seconds - _UNDO_SECONDS
        saved = await asyncio.to_thread(pod_file.read, directory)
        by_name = {container.metadata.name: container for container in containers}
        self._require_fitting(saved, handler, by_name)
        archives = {name: str(directory / pod_file.archive(number)) for number, name in enumerate(saved.containers)}
        content = _Restored(self._shims, self._creations, saved.last_pid, by_name, archives, trace, deadline)
        sandbox_id = await self._sandboxes.run(config, handler, trace, content, (directory, by_name))
        made = {one.config.metadata.name: one for one in self._state.containers_of(sandbox_id)}
        if made.keys() != by_name.keys() or not all(_is(made[name], one) for name, one in by_name.items()):
            raise AlreadyExists(f"name {pod_name(config)!r} is held by pod sandbox {sandbox_id} until it is removed")
        return sandbox_id, {name: one.id for name, one in made.items()}

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


class _Restored:
    """The containers of a pod that is restored."""

    def __init__(
        self,
        shims: Shims,
        creations: Creations,
        last_pid: int,
        containers: Mapping[str, ContainerConfig],
        archives: Mapping[str, str],
        trace: Trace,
        deadline: float,
    ) -> None:
        self.last_pid = last_pid
        self._shims = shims
        self._creations = creations
        self._containers = containers
        self._archives = archives
        self._trace = trace
        self._deadline = deadline
        self._begun: list[tuple[Creation, Prepared]] = []

    async def prepare(self, sandbox: Sandbox, undo: Undo) -> None:
        self._sandbox = sandbox
        for name, archive in self._archives.items():
            config = self._containers[name]
            self._require_time()
            creation = self._creations.restoration(sandbox, config, self._trace, undo)
            with explained(config):
                try:
                    self._begun.append((creation, await creation.prepare(archive, self._deadline)))
                except TimeoutError as error:
                    raise _too_late() from error

    async def finish(self) -> Sequence[ContainerRecord]:
        self._require_time()
        records = []
        for creation, prepared in self._begun:
            with explained(prepared.container.config):
                records.append(await creation.finish(prepared))
        # No loss of a pod that is not visible yet is recorded.
        if not (await self._shims.ask(self._sandbox.id, GetState())).infra_alive:
            raise FailedPrecondition(f"restore pod: the infra process of pod sandbox {self._sandbox.id} has ended")
        self._require_time()
        return records

    async def created(self, records: Sequence[ContainerRecord]) -> None:
        for record in records:
            await self._creations.created(self._sandbox, record.container)

    def _require_time(self) -> None:
        if asyncio.get_running_loop().time() > self._deadline:
            raise _too_late()


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("restore pod: deadline exceeded; what was created is removed")


def _is(made: Container, wanted: ContainerConfig) -> bool:
    """Return whether the container is what the same request creates, and was not started yet."""
    return made.config == wanted and bool(made.checkpoint) and can_start(made)


def _require_same(path: str, saved: ContainerConfig, wanted: ContainerConfig) -> None:
    """Refuse a request for other processes than the captured ones. Messages leave values out: they may be secret."""
    for name in _PROCESS:
        if getattr(saved, name) != getattr(wanted, name):
            raise InvalidArgument(f"{path}.{name}: differs from the checkpointed container's")
    for name in _CREDENTIALS:
        if getattr(saved.security, name) != getattr(wanted.security, name):
            raise InvalidArgument(f"{path}.linux.security_context.{name}: differs from the checkpointed container's")
