"""The end of containers whose shim is gone."""

from __future__ import annotations

import asyncio
from typing import Any

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
from pods.state.transitions import UNSEEN
from runtime.client import ShimGone


class _Node:
    """Where no shim lives, and a container of one still runs."""

    def __init__(self) -> None:
        self.killed: list[tuple[str, str]] = []

    def of(self, _sandbox_id: str) -> None:
        raise ShimGone("the shim is gone")

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
    node: Any = _Node()
    background = Background()
    stops = Stops(state, node, Exits(state, node, background, node), background)
    await asyncio.wait_for(stops.stop("c", 30), 60)
    assert node.killed == [("s", "c")]
    ended = state.find_container("c").container
    assert (ended.state, ended.exit_code) == (ContainerState.EXITED, UNSEEN)
