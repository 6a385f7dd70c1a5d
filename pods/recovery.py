"""What an earlier daemon left, told from the database, the shims that live, and the files in the state directory."""

from __future__ import annotations

import contextlib
import logging
import shutil
from typing import TYPE_CHECKING

from pods.model import ContainerState, SandboxState
from pods.store import ContainerRecord, SandboxRecord
from runtime.client import ShimClient, ShimGone
from runtime.errors import RuntimeCoreError

if TYPE_CHECKING:
    from image.store import ImageStore
    from pods.containers import Containers
    from pods.sandboxes import Sandboxes
    from pods.shims import Shims
    from pods.state import State

_log = logging.getLogger("crisp.pods")


async def recover(
    state: State,
    shims: Shims,
    sandboxes: Sandboxes,
    containers: Containers,
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
        shim = await _adopt(shims, record.sandbox.id)
        if not record.finished:
            await sandboxes.discard(record)
        elif shim is None:
            await _without_shim(record, sandboxes, containers)
        else:
            await _catch_up(record, shim, state, sandboxes, containers)
    for container_record in records[1]:
        if not container_record.finished:
            await containers.discard(container_record.container)
    await _clean_state_directory(state, shims)


async def _adopt(shims: Shims, sandbox_id: str) -> ShimClient | None:
    try:
        return await shims.find(sandbox_id)
    except ShimGone:
        return None


async def _without_shim(record: SandboxRecord, sandboxes: Sandboxes, containers: Containers) -> None:
    """The shim died, or the machine started anew: nothing of the pod runs."""
    await sandboxes.lost(record.sandbox.id)
    await containers.lost(record.sandbox.id)


async def _catch_up(
    record: SandboxRecord, shim: ShimClient, state: State, sandboxes: Sandboxes, containers: Containers
) -> None:
    """Learn what happened while no daemon listened."""
    told = await shim.call("state")
    if not told["infra_alive"] and record.sandbox.state is SandboxState.READY:
        await sandboxes.lost(record.sandbox.id)
    for container in list(state.containers_of(record.sandbox.id)):
        known = told["containers"].get(container.id)
        if known is None:
            continue
        if known["state"] == "running" and container.state is ContainerState.CREATED:
            await state.update_container(
                container.id, state=ContainerState.RUNNING, pid=known["pid"], started_at=known["started_at"]
            )
        elif known["exit"] is not None and container.state is not ContainerState.EXITED:
            if known["exit"].get("start_failed"):
                await state.update_container(
                    container.id,
                    state=ContainerState.EXITED,
                    exit_code=known["exit"]["code"],
                    reason="StartError",
                    finished_at=known["exit"]["finished_at"],
                )
                continue
            if known["started_at"] and not container.started_at:
                await state.update_container(container.id, started_at=known["started_at"])
            await containers.record_exit(container.id, known["exit"])


async def _clean_state_directory(state: State, shims: Shims) -> None:
    """End shims and remove directories that no record speaks of: the daemon died before the intent was on disk."""
    sandboxes = state.settings.state / "sandboxes"
    for directory in sandboxes.iterdir() if sandboxes.is_dir() else ():
        if directory.name in state.sandboxes:
            continue
        _log.info("removing what is left of unfinished pod sandbox %s", directory.name)
        await _adopt(shims, directory.name)
        with contextlib.suppress(RuntimeCoreError):
            await shims.end(directory.name)
            shims.unpin(state.settings.netns_path(directory.name))
        shutil.rmtree(directory, ignore_errors=True)
    for parent in (state.settings.state / "containers", state.settings.root / "containers"):
        for directory in parent.iterdir() if parent.is_dir() else ():
            if directory.name not in state.containers:
                shutil.rmtree(directory, ignore_errors=True)


