"""What an earlier daemon left, told from the database, the shims that live, and the files in the state directory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from pods.directories import remove_tree
from pods.errors import PodError
from pods.model import ContainerState, SandboxState
from pods.store import ContainerRecord, SandboxRecord
from runtime.client import ShimClient, ShimGone
from runtime.errors import RuntimeCoreError

if TYPE_CHECKING:
    from image.store import ImageStore
    from pods.containers import Containers
    from pods.inflight import Background
    from pods.sandboxes import Sandboxes
    from pods.shims import Shims
    from pods.state import State

_log = logging.getLogger("crisp.pods")
_ANSWER_SECONDS: Final = 10.0


async def recover(
    state: State,
    shims: Shims,
    sandboxes: Sandboxes,
    containers: Containers,
    background: Background,
    images: ImageStore,
    records: tuple[list[SandboxRecord], list[ContainerRecord]],
) -> None:
    """Bring the state in memory to the truth: adopt living shims, learn of exits, undo what was not finished."""
    finished = [record for record in records[0] if record.finished]
    state.sandboxes.update((record.sandbox.id, record) for record in finished)
    for container_record in records[1]:
        container = container_record.container
        images.hold(container.image_id)
        if container_record.finished:
            state.containers[container.id] = container_record
            if container.state is ContainerState.EXITED:
                state.exited(container.id).set()
    for record in records[0]:
        await _adopt(record, state, shims, sandboxes, containers, background)
    for container_record in records[1]:
        if not container_record.finished:
            with _survived("undo unfinished container", container_record.container.id):
                await containers.discard(container_record.container)
    await _clean_state_directory(state, shims)


async def _adopt(
    record: SandboxRecord,
    state: State,
    shims: Shims,
    sandboxes: Sandboxes,
    containers: Containers,
    background: Background,
) -> None:
    sandbox_id = record.sandbox.id
    shim = await _find(shims, sandbox_id)
    if not record.finished:
        with _survived("undo unfinished pod sandbox", sandbox_id):
            await sandboxes.discard(record)
        return
    if shim is not None:
        try:
            await _catch_up(record, shim, state, sandboxes, containers, background)
            return
        except ShimGone:
            pass
        except TimeoutError:
            _log.error("the shim of pod sandbox %s does not answer; it is left as it was", sandbox_id)
            return
    await _without_shim(sandbox_id, sandboxes, containers)


async def _find(shims: Shims, sandbox_id: str) -> ShimClient | None:
    try:
        return await shims.find(sandbox_id)
    except ShimGone:
        return None


@contextlib.contextmanager
def _survived(operation: str, object_id: str) -> Iterator[None]:
    """One object that cannot be undone (a full disk) must not keep the daemon from serving the others."""
    try:
        yield
    except (PodError, RuntimeCoreError, OSError) as error:
        _log.error("%s %s: %s", operation, object_id, error)


async def sandbox_lost(
    sandbox_id: str,
    state: State,
    shims: Shims,
    sandboxes: Sandboxes,
    containers: Containers,
    background: Background,
) -> None:
    """The connection to the shim, or the infra process, ended. A shim that lives is found again."""
    with contextlib.suppress(ShimGone):
        shims.of(sandbox_id)
        await sandboxes.lost(sandbox_id)
        await containers.orphaned(sandbox_id)
        return
    record = state.sandboxes.get(sandbox_id)
    if record is not None and record.sandbox.state is SandboxState.READY:
        await _adopt(record, state, shims, sandboxes, containers, background)
    else:
        await _without_shim(sandbox_id, sandboxes, containers)


async def _without_shim(sandbox_id: str, sandboxes: Sandboxes, containers: Containers) -> None:
    """The shim died, or the machine started anew: nothing of the pod runs."""
    await sandboxes.lost(sandbox_id)
    await containers.lost(sandbox_id)


async def _catch_up(
    record: SandboxRecord,
    shim: ShimClient,
    state: State,
    sandboxes: Sandboxes,
    containers: Containers,
    background: Background,
) -> None:
    """Learn what happened while no daemon listened. Raises ShimGone, TimeoutError."""
    told = await asyncio.wait_for(shim.call("state"), _ANSWER_SECONDS)
    if not told["infra_alive"] and record.sandbox.state is SandboxState.READY:
        await sandboxes.lost(record.sandbox.id)
    for container in list(state.containers_of(record.sandbox.id)):
        known = told["containers"].get(container.id)
        if known is None:
            continue
        if known["state"] == "starting":
            following = _follow_start(container.id, shim, state, containers)
            background.detach(following, f"follow the start of container {container.id}")
        elif known["state"] == "running" and container.state is ContainerState.EXITED:
            await shim.call("kill", container=container.id)  # its start was told to have failed
        else:
            await _learn(container.id, known, state, containers)


async def _follow_start(container_id: str, shim: ShimClient, state: State, containers: Containers) -> None:
    """The daemon that asked for the start is gone; the start goes on."""
    async with state.lock(container_id):
        known = await shim.call("wait-start", container=container_id)
        await _learn_start(container_id, known, state)
    await _learn(container_id, known, state, containers)


async def _learn_start(container_id: str, known: dict[str, Any], state: State) -> None:
    record = state.containers.get(container_id)
    if record is None:
        return
    if known["exit"] is not None and known["exit"].get("start_failed"):
        if record.container.state is not ContainerState.EXITED:
            await state.record_fact(
                container_id,
                state=ContainerState.EXITED,
                exit_code=known["exit"]["code"],
                reason="StartError",
                finished_at=known["exit"]["finished_at"],
            )
    elif known["started_at"] and not record.container.started_at:
        running = {"state": ContainerState.RUNNING} if record.container.state is ContainerState.CREATED else {}
        await state.record_fact(container_id, pid=known["pid"], started_at=known["started_at"], **running)


async def _learn(container_id: str, known: dict[str, Any], state: State, containers: Containers) -> None:
    await _learn_start(container_id, known, state)
    if known["exit"] is not None:
        await containers.record_exit(container_id, known["exit"])


async def _clean_state_directory(state: State, shims: Shims) -> None:
    """End shims and remove directories that no record speaks of: the daemon died before the intent was on disk."""
    sandboxes = state.settings.state / "sandboxes"
    for directory in sandboxes.iterdir() if sandboxes.is_dir() else ():
        if directory.name in state.sandboxes:
            continue
        _log.info("removing what is left of unfinished pod sandbox %s", directory.name)
        await _find(shims, directory.name)
        with contextlib.suppress(RuntimeCoreError):
            await shims.end(directory.name)
            shims.unpin(state.settings.netns_path(directory.name))
        shutil.rmtree(directory, ignore_errors=True)
    for parent in (state.settings.state / "containers", state.settings.root / "containers"):
        for directory in parent.iterdir() if parent.is_dir() else ():
            if directory.name not in state.containers:
                remove_tree(directory)


