"""The end of containers whose shim is gone."""

from __future__ import annotations

import asyncio
from typing import Any

from pods.cgroups.driver import CGROUPFS, Cgroups
from pods.inflight import Background
from pods.life.exit import Exits
from pods.life.stop import Stops
from pods.model import (
    Container,
    ContainerConfig,
    ContainerMetadata,
    ContainerState,
    ImageSpec,
    Sandbox,
    SandboxConfig,
    SandboxMetadata,
    SandboxState,
)
from pods.state.memory import State
from pods.state.store import ContainerRecord, SandboxRecord
from runtime.client import ShimGone
from runtime.wire.calls import UNSEEN


class _Shims:
    """None of them lives."""

    def of(self, _sandbox_id: str) -> None:
        raise ShimGone("the shim is gone")


class _Cgroups(Cgroups):
    """Those of containers that still run."""

    def __init__(self) -> None:
        super().__init__(CGROUPFS)
        self.killed: list[tuple[str, str]] = []

    def kill_container(self, sandbox: Sandbox, container_id: str) -> None:
        self.killed.append((sandbox.id, container_id))


async def test_a_stop_ends_a_container_whose_shim_is_gone(state: State) -> None:
    """Whoever removes it next takes it for ended, whether or not the daemon has heard of the loss."""
    sandbox = Sandbox("s", SandboxConfig(SandboxMetadata("pod", "u", "n")), "crisp", SandboxState.READY, created_at=1)
    config = ContainerConfig(metadata=ContainerMetadata(name="main"), image=ImageSpec(image="i"))
    container = Container(
        id="c", sandbox_id="s", config=config, image_id="i", image_ref="i", state=ContainerState.RUNNING, created_at=1
    )
    await state.save_sandbox(SandboxRecord(sandbox=sandbox, finished=True))
    await state.save_container(ContainerRecord(container=container, finished=True))
    shims: Any = _Shims()
    clues: Any = None  # nobody looks for any where the exit was not seen
    cgroups, background = _Cgroups(), Background()
    stops = Stops(state, shims, Exits(state, cgroups, background, clues), background)
    await asyncio.wait_for(stops.stop("c", 30), 60)
    assert cgroups.killed == [("s", "c")]
    ended = state.find_container("c").container
    assert (ended.state, ended.exit_code) == (ContainerState.EXITED, UNSEEN)
